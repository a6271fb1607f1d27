"""Every recipe, every trainable strategy and every common architecture: two real steps from P0 to P4."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from scaler_wizard.errors import ModelError
from scaler_wizard.recipes.registry import RECIPES
from scaler_wizard.report.page import write_report
from scaler_wizard.store import flightlog
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

IDS = torch.arange(20, 84)[None]
ARCHITECTURES = ["llama", "qwen3", "phi3", "gemma", "mistral"]


def logits_of(directory: Path) -> torch.Tensor:
    """Logits [1, T, V] of an exported model, loaded as any user of transformers would."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        return model(IDS).logits


def adapted_logits(base: Path, adapter: Path) -> torch.Tensor:
    """Logits [1, T, V] of the base with the exported adapter, loaded with PEFT."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        return model(IDS).logits


def assert_sound(run: RunDir, workspace: Workspace) -> dict[str, Any]:
    """What every completed run directory must be; its result."""
    status = run.exit_status()
    assert status is not None
    assert status.outcome == "completed", status.reason
    result = run.result()
    assert result is not None
    store = CheckpointStore(run)
    assert [item.phase for item in store.chain()] == [row["phase"] for row in result["phases"]]
    for name in store.names():
        store.verify(name)
    assert flightlog.verify(workspace.flight_log).ok
    logged = [entry["kind"] for entry in flightlog.read_entries(workspace.flight_log)]
    assert logged.count("phase_done") == len(result["phases"])
    return result


def assert_grown(run: RunDir, result: dict[str, Any], effective: int) -> None:
    """The record that report, registry and `--json` read."""
    assert result["base_context"] == 128
    assert result["effective_context"] == result["target_context"] == effective
    assert {"metric", "before", "after", "before_ci", "after_ci", "n"} <= set(result["table"][0])
    assert result["nll_by_position"]["after"]
    assert set(result["needle"]["after"]) == {"128", str(effective)}
    page = write_report(run.path).read_text(encoding="utf-8")
    assert "</html>" in page
    assert run.id in page
    assert run.cockpit_payload() is not None


def test_every_recipe_is_run_here() -> None:
    # A recipe that joins the registry joins the tests of this folder.
    assert set(RECIPES) == {"grow", "continual", "consolidate", "experts", "bootstrap"}


def test_the_embedded_model_from_p0_to_p4_with_the_real_worker(
    harness: ModuleType, workspace: Workspace
) -> None:
    value = harness.job_value(scaling={"target_context": 256, "rope_method": "dynamic"})
    run, row = harness.run_hosted(workspace, value)
    assert row["status"] == "completed", row["error"]
    result = assert_sound(run, workspace)
    assert_grown(run, result, 256)
    assert result["rope"] == {"method": "dynamic", "factor": 2.0}

    steps = harness.events(run, "step")
    assert [event.step for event in steps if event.phase == "P1"] == [1, 2]
    said = [event.text for event in harness.events(run, "note") if event.text.startswith("training layers")]
    assert said
    assert all("adapted layers" in text and "as the model has them" not in text for text in said)
    # Whether the longer context passes untrained is the model's matter; that it is counted right is ours.
    longer = next(phase for phase in result["phases"] if phase["phase"] == "P2")
    assert len([event for event in steps if event.phase == "P2"]) == longer["steps"]
    assert [event.phase for event in harness.events(run, "phase_done")] == ["P0", "P1", "P2", "P4"]
    assert [event.gate for event in harness.events(run, "gate_opened")] == ["P2", "P4"]
    assert {event.by for event in harness.events(run, "gate_closed")} == {"the run itself (auto_approve)"}
    assert [phase["phase"] for phase in row["phases"]] == ["P0", "P1", "P2", "P4"]

    merged, adapter = Path(result["export"]["merged"]), Path(result["export"]["adapter"])
    base = Path(result["model"]["path"])
    config = json.loads((merged / "config.json").read_text())
    assert config["max_position_embeddings"] == 256 or config["rope_parameters"]["rope_type"] == "dynamic"
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer.model_max_length == 256
    assert tokenizer.chat_template
    # 64 tokens lie within the base context, where dynamic scaling changes nothing.
    torch.testing.assert_close(logits_of(merged), adapted_logits(base, adapter), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(logits_of(merged), logits_of(base), atol=1e-3)

    registered = {model.kind: model for model in harness.models(workspace)}
    assert set(registered) == {"base", "adapter", "merged"}
    for kind in ("adapter", "merged"):
        assert registered[kind].run_id == run.id
        assert registered[kind].parent_id == registered["base"].id
    assert registered["merged"].path == str(merged)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_on_a_local_file(
    kind: str, harness: ModuleType, workspace: Workspace, tmp_path: Path
) -> None:
    model = harness.save_tiny(tmp_path / "model", kind)
    rows, texts = harness.write_messages(tmp_path / "rows.jsonl"), harness.write_texts(tmp_path / "t.txt")
    value = harness.job_value(
        model, scaling={"target_context": 256},
        dataset={"source": "local", "identifier": str(rows), "text_file": str(texts)},
    )  # fmt: skip
    run = harness.create(workspace, value)
    assert harness.attempt(run) == 0, run.exit_status()
    result = assert_sound(run, workspace)
    assert_grown(run, result, 256)
    assert result["model"]["architecture"].lower().startswith(kind)
    merged, adapter = Path(result["export"]["merged"]), Path(result["export"]["adapter"])
    assert PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    stored = load_file(adapter / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in stored.items() if "lora_B" in name)
    assert torch.isfinite(logits_of(merged)).all()


def local(harness: ModuleType, folder: Path, **changes: Any) -> dict[str, Any]:
    """A job on a tiny Llama and local files."""
    model = harness.save_tiny(folder / "model", "llama")
    rows, texts = harness.write_messages(folder / "rows.jsonl"), harness.write_texts(folder / "t.txt")
    dataset = {"source": "local", "identifier": str(rows), "text_file": str(texts)}
    return harness.job_value(model, dataset=dataset, **changes)


def test_all_weights(harness: ModuleType, workspace: Workspace, tmp_path: Path) -> None:
    value = local(harness, tmp_path, scaling={"strategy": "full", "target_context": 256})
    run = harness.create(workspace, value)
    assert harness.attempt(run) == 0, run.exit_status()
    result = assert_sound(run, workspace)
    assert_grown(run, result, 256)
    assert "adapter" not in result["export"]
    trained = load_file(CheckpointStore(run).checkpoint("P1").path / "trained.safetensors")
    merged = load_file(Path(result["export"]["merged"]) / "model.safetensors")
    base = load_file(tmp_path / "model" / "model.safetensors")
    changed = [name for name in base if not torch.equal(base[name], merged[name])]
    assert len(changed) == len(base)
    said = [event.text for event in harness.events(run, "note") if event.text.startswith("training layers")]
    assert any("fused: nothing" in text and "a norm that is trained" in text for text in said)
    assert all(torch.equal(merged[name], trained[name]) for name in merged)


def test_a_prefix_at_the_base_context(harness: ModuleType, workspace: Workspace, tmp_path: Path) -> None:
    run = harness.create(workspace, local(harness, tmp_path, scaling={"strategy": "prefix_tuning"}))
    assert harness.attempt(run) == 0, run.exit_status()
    result = assert_sound(run, workspace)
    assert [row["phase"] for row in result["phases"]] == ["P0", "P1", "P4"]
    assert set(result["export"]) == {"adapter", "logit_comparison"}
    notes = [event.text for event in harness.events(run, "note")]
    assert "a prefix cannot be merged into weights: the adapter is the export" in notes
    adapter, model = Path(result["export"]["adapter"]), tmp_path / "model"
    assert not torch.allclose(adapted_logits(model, adapter), logits_of(model), atol=1e-4)


def test_new_tokens_reach_the_export(harness: ModuleType, workspace: Workspace, tmp_path: Path) -> None:
    words = ["scalerwizardly", "contextgrower"]
    value = local(harness, tmp_path, scaling={"vocabulary": {"add_tokens": words}, "target_context": 256})
    run = harness.create(workspace, value)
    assert harness.attempt(run) == 0, run.exit_status()
    result = assert_sound(run, workspace)
    merged = Path(result["export"]["merged"])
    tokenizer = AutoTokenizer.from_pretrained(merged)
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model").get_input_embeddings().weight
    grown = AutoModelForCausalLM.from_pretrained(merged).get_input_embeddings().weight
    assert [len(found) for found in ids] == [1, 1]
    assert grown.shape[0] == base.shape[0] + 2
    parts = AutoTokenizer.from_pretrained(tmp_path / "model")(words[0], add_special_tokens=False).input_ids
    torch.testing.assert_close(grown[ids[0][0]], base[parts].mean(dim=0))


def test_a_taken_export_directory_is_never_overwritten(
    harness: ModuleType, workspace: Workspace, tmp_path: Path
) -> None:
    theirs = tmp_path / "out" / "merged"
    theirs.mkdir(parents=True)
    (theirs / "precious.txt").write_text("mine")
    run = harness.create(workspace, local(harness, tmp_path, export={"directory": str(tmp_path / "out")}))
    assert harness.attempt(run) == 1
    status = run.exit_status()
    assert status is not None
    assert "is not empty" in status.reason
    assert (theirs / "precious.txt").read_text() == "mine"
    assert CheckpointStore(run).chain()[-1].phase == "P1"
    assert ModelError.__name__ not in status.reason
