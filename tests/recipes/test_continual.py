"""A lineage of files, learned by the real recipe: what goes on between versions, and what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from scaler_wizard.evals.validation import ANSWERS_FILE
from scaler_wizard.report.page import write_report
from scaler_wizard.report.table import format_table
from scaler_wizard.report.timeline import QUICK_LOOK
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

IDS = torch.arange(20, 84)[None]


def learned(harness: ModuleType, run: RunDir) -> dict[str, Any]:
    """One attempt that must complete; its result."""
    assert harness.attempt(run) == 0, run.exit_status()
    result = run.result()
    assert result is not None
    return result


def logits(result: dict[str, Any]) -> torch.Tensor:
    """Of the exported version, loaded as any user of transformers would."""
    export = result["export"]
    if "full" in export:
        model = AutoModelForCausalLM.from_pretrained(export["full"])
    else:
        base = AutoModelForCausalLM.from_pretrained(result["model"]["path"])
        model = PeftModel.from_pretrained(base, export["adapter"])
    with torch.no_grad():
        return torch.as_tensor(model.eval()(IDS).logits)


@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_two_files_of_one_lineage(
    strategy: str, harness: ModuleType, workspace: Workspace, tmp_path: Path
) -> None:
    lineage = {"strategy": strategy, "lora": {"rank": 4, "alpha": 8}}
    config = harness.continual_config(tmp_path, lineage=lineage)
    first = harness.drop(workspace, config, harness.write_tasks(tmp_path / "a.jsonl", (1, 2)))
    one = learned(harness, first)
    parent = harness.next_parent(first, version=1)
    second = harness.drop(workspace, config, harness.write_tasks(tmp_path / "b.jsonl", (5, 6)), parent)
    two = learned(harness, second)

    before, learning, after = (harness.phase_metrics(second)[name] for name in ("P0", "P1", "P2"))
    # Version 1 answered the fixed questions when it was made; its weights beside them are what is loaded.
    assert before["reused"]
    assert not harness.phase_metrics(first)["P0"]["reused"]
    assert before["answers"]["right"] == harness.phase_metrics(first)["P2"]["answers"]["right"]
    assert after["questions"] == harness.phase_metrics(first)["P2"]["questions"]
    # What the first file held out is asked before and after the second; its rows are replayed.
    assert set(after["changes"]) == {"easy", "medium", "hard", "held-out rows of earlier files"}
    assert learning["rows"]["replayed_files"] == 1
    assert learning["rows"]["replayed"] > 0
    assert harness.phase_metrics(first)["P1"]["rows"]["replayed_files"] == 0
    assert two["version"]["promote"] is True
    assert two["version"]["description"].endswith(f"on {config.lineage.model_name} v001")
    assert two["model"]["weights_sha256"] if strategy == "lora" else two["export"]["full"]
    # The second version is another model than the first, and both load anywhere.
    assert not torch.allclose(logits(one), logits(two), atol=1e-3)
    looks = [event for event in harness.events(second, "probe") if event.probe == QUICK_LOOK]
    assert [event.result["step"] for event in looks] == [2]
    assert looks[0].result["validation_loss"] > 0
    assert {"question", "expected", "answer", "right"} == set(looks[0].result["answers"][0])
    page = write_report(second.path).read_text(encoding="utf-8")
    assert "hard questions" in page
    assert "hard questions" in format_table(two)


def test_reused_answers_are_what_would_be_measured(
    harness: ModuleType, workspace: Workspace, tmp_path: Path
) -> None:
    config = harness.continual_config(tmp_path, training={"max_steps": 40, "batch_tokens": 512})
    path = harness.write_tasks(tmp_path / "a.jsonl", (1,), rows=400)
    first = harness.drop(workspace, config, path)
    result = learned(harness, first)
    (Path(result["export"]["adapter"]) / ANSWERS_FILE).unlink()
    one_step = harness.continual_config(tmp_path, training={"max_steps": 1})
    again = harness.drop(workspace, one_step, path, harness.next_parent(first, version=1))
    learned(harness, again)
    measured = harness.phase_metrics(again)["P0"]
    assert not measured["reused"]
    assert measured["answers"]["right"] == harness.phase_metrics(first)["P2"]["answers"]["right"]
    losses = harness.phase_metrics(first)["P2"]["held_out_losses"]
    assert measured["held_out_losses"] == pytest.approx(losses, rel=1e-4)


def test_bad_lines_vocabulary_system_prompt_and_own_questions(
    harness: ModuleType, workspace: Workspace, tmp_path: Path
) -> None:
    path = harness.write_tasks(tmp_path / "a.jsonl", (1,))
    path.write_text('{"torn\n' + path.read_text(encoding="utf-8") + '{"messages": []}\n', encoding="utf-8")
    files = {}
    for name in ("easy", "medium", "hard"):
        rows = [{"prompt": f"{name} {n}", "completion": str(n)} for n in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        files[name] = str(tmp_path / f"{name}.jsonl")
    config = harness.continual_config(
        tmp_path, lineage={"vocabulary": ["Reverse:"]}, validation=files,
        data={"system_prompt": "Answer in letters."},
    )  # fmt: skip
    first = harness.drop(workspace, config, path)
    result = learned(harness, first)
    assert result["file"]["set_aside"] == 2
    assert [number for number, _ in result["file"]["reasons"]] == [1, 82]
    assert {change["before"]["n"] for change in result["version"]["metrics"]["accuracy"].values()} == {8}
    # An adapter's base has no new tokens of its own: the next file grows the same ones and goes on.
    second = harness.drop(workspace, config, path, harness.next_parent(first, version=1))
    assert learned(harness, second)["version"]["promote"] is True


def forget(harness: ModuleType, workspace: Workspace, folder: Path) -> tuple[Metrics, Metrics]:
    """Learn a task well, then rows that contradict it, with no replay; both results."""
    settings = {"max_steps": 60, "batch_tokens": 512, "micro_batch_tokens": 512}
    sections = {
        "training": settings, "lineage": {"lora": {"rank": 16, "alpha": 32}}, "replay": {"fraction": 0.0},
        "validation": {"rows": 16, "tasks": ["copy"], "check_every": 0},
    }  # fmt: skip
    config = harness.continual_config(folder, **sections)
    rows = harness.task_rows(("copy",), (1, 2, 3, 5, 6, 9, 10), 900)
    first = harness.drop(workspace, config, harness.write_rows(folder / "copy.jsonl", rows))
    one = learned(harness, first)
    wrong = [(question, "no") for question, _ in rows]
    path = harness.write_rows(folder / "wrong.jsonl", wrong)
    second = harness.drop(workspace, config, path, harness.next_parent(first, version=1))
    return one, learned(harness, second)


def test_a_version_that_forgot_is_held(harness: ModuleType, workspace: Workspace, tmp_path: Path) -> None:
    one, two = forget(harness, workspace, tmp_path)
    accuracy = one["version"]["metrics"]["accuracy"]
    assert one["version"]["promote"] is True
    assert accuracy["easy"]["before"]["value"] == 0.0
    assert accuracy["easy"]["after"]["value"] > 0.8
    assert two["version"]["promote"] is False
    assert "easy: accuracy fell" in two["version"]["reasons"][0]
    assert two["version"]["metrics"]["accuracy"]["easy"]["lost"] > 12
    # It is exported all the same: a person may look at it, and promote it.
    assert Path(two["export"]["adapter"]).is_dir()
