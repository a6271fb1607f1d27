"""A bootstrap on the embedded model: real stages and gates at toy size, interrupted, stopped by a gate."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from scaler_wizard.data.records import read_manifest, read_records, records_digest
from scaler_wizard.data.world_embedded import EmbeddedWorld
from scaler_wizard.errors import RunError
from scaler_wizard.jobs.prepare import parse_job, prepare
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

SKILLS = ("explicit", "implicit", "make", "evaluate", "revise")


def job_value(**changes: Any) -> dict[str, Any]:
    """Two letter tasks of three letters, gates that 40 questions can decide."""
    stage = {"prompts": 60, "steps": 30, "share": 0.2, "replay": 0.3}
    value: dict[str, Any] = {
        "recipe": "bootstrap", "name": "tiny", "model": {"base_model": "seedling", "runtime": "cpu"},
        "world": {"types": ["copy", "double"], "levels": [1]},
        "stages": {"last": 1, **{skill: dict(stage) for skill in SKILLS}},
        "sampling": {
            "samples": 2, "base_texts": 12, "max_new_tokens": 12, "confidence": 0.05, "agreement": 0.5,
        },
        "evaluation": {"questions": 40, "least": 40},
        "scaling": {"lora": {"rank": 32, "alpha": 64}},
        "training": {"batch_tokens": 512, "micro_batch_tokens": 512, "learning_rate": 0.006},
        "safety": {"gates": {"ask": "auto_approve"}},
    }  # fmt: skip
    for section, fields in changes.items():
        value[section] = {**value.get(section, {}), **fields}
    return value


def metrics_of(run: RunDir) -> dict[str, dict[str, Any]]:
    return {item.phase: dict(item.metrics) for item in CheckpointStore(run).chain()}


def test_a_stage_makes_its_data_trains_passes_and_is_a_model(
    harness: ModuleType, workspace: Workspace
) -> None:
    run = harness.create(workspace, job_value())
    assert harness.attempt(run) == 0
    result = run.result()
    assert result is not None
    assert result["passed"] == [1]
    assert result["stopped"] is None
    done = metrics_of(run)
    assert list(done) == ["P0", "P1", "P7"]
    # A base model: it knows the tasks as documents, and follows no instruction in any way of asking.
    assert done["P0"]["document_accuracy"] > 0.9
    assert max(map(sum, done["P0"]["ways"]["explicit"].values())) == 0
    assert result["base"]["gaps"]["explicit"]["open"]
    assert result["base"]["audit"]["trusted"]
    assert result["base"]["warnings"] == []
    (gain,) = result["gains"]
    assert gain["label"] == "elicitation"
    data = done["P1"]["data"]
    rows = list(read_records(run.path / data["file"], data["sha256"]))
    assert len(rows) == data["n"] == 60
    assert all(row["reason"] for row in rows if not row["kept"])
    assert read_manifest(run.path / data["file"]).kept == data["kept"]
    assert data["precision"]["kept"] > 0.9
    # Each phase's checkpoint is a model that transformers loads and that answers.
    stage = run.path / result["stages"][0]["model"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(stage), AutoTokenizer.from_pretrained(stage)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Copy: q z k"}], add_generation_prompt=True, return_tensors="pt",
        return_dict=True,
    )  # fmt: skip
    assert tokenizer.decode(asked["input_ids"][0]) == "Q: Copy: q z k\nA:"
    said = model.generate(**asked, max_new_tokens=6, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert len(said) >= 1
    assert Path(result["export"]["merged"], "config.json").is_file()
    spent = result["cost"]
    assert spent["generated"] > 0
    assert spent["trained"] > 0


def test_a_stage_that_cannot_pass_is_tried_three_times_and_undone(
    harness: ModuleType, workspace: Workspace
) -> None:
    value = job_value(training={"learning_rate": 1e-6})
    value["stages"]["explicit"] |= {"steps": 2, "prompts": 30}
    run = harness.create(workspace, value)
    assert harness.attempt(run) == 0
    done = metrics_of(run)
    assert list(done) == ["P0", "P1", "P1.2", "P1.3", "P7"]
    assert [done[name]["next"] for name in ("P1", "P1.2", "P1.3")] == ["more_data", "more_replay", "stop"]
    assert done["P1"]["data"]["n"] == 30
    assert done["P1.2"]["data"]["n"] > 30
    assert done["P1.3"]["replay"] == 0.6
    result = run.result()
    assert result is not None
    assert result["passed"] == []
    assert result["stopped"]["phase"] == "P1.3"
    assert any("no gain" in reason for reason in result["stopped"]["reasons"])
    # What is exported is the base: the failed attempts left nothing behind.
    model = CheckpointStore(run).checkpoint("P1.3").path / "model" / "model.safetensors"
    assert model.is_file()
    base = AutoModelForCausalLM.from_pretrained(result["model"]["path"])
    exported = AutoModelForCausalLM.from_pretrained(result["export"]["merged"])
    for name, tensor in base.state_dict().items():
        assert tensor.equal(exported.state_dict()[name]), name


def test_a_base_that_says_nothing_ends_with_the_reason(
    harness: ModuleType, workspace: Workspace, tmp_path: Path
) -> None:
    model = harness.save_tiny(tmp_path / "random", "llama")
    value = job_value(model={"base_model": str(model)}, sampling={"confidence": 0.99})
    run = harness.create(workspace, value)
    assert harness.attempt(run) == 0
    result = run.result()
    assert result is not None
    assert result["stopped"]["phase"] == "P1"
    assert any("made data" in reason for reason in result["stopped"]["reasons"])
    assert result["stages"][-1]["data"]["pilot"]


def test_nothing_is_trained_where_nothing_is_missing(harness: ModuleType, workspace: Workspace) -> None:
    """With so few questions no gap is proven, and the run says so instead of training."""
    run = harness.create(workspace, job_value(evaluation={"questions": 20, "least": 20}, stages={
        "last": 1, "explicit": {"share": 0.05}, "implicit": {"share": 0.05}, "make": {"share": 0.05},
        "evaluate": {"share": 0.05}, "revise": {"share": 0.05}}))  # fmt: skip
    assert harness.attempt(run) == 0
    assert list(metrics_of(run)) == ["P0", "P7"]
    result = run.result()
    assert result is not None
    assert not result["base"]["train"]


def test_a_killed_run_makes_the_same_data(harness: ModuleType, workspace: Workspace) -> None:
    whole = harness.create(workspace, job_value())
    assert harness.attempt(whole) == 0
    cut = harness.create(workspace, job_value())
    with harness.hosted(workspace) as host:
        harness.start(host, cut)
        pilot = cut.path / "bootstrap" / "stage1" / "pilot-documents-00000.json"
        harness.wait_for(pilot.is_file, "the pilot's answers")
        harness.kill(harness.worker_pid(cut))
        harness.finish(host, cut)
    # The host starts a killed worker again by itself; where it has not, this attempt goes on.
    if cut.result() is None:
        assert harness.attempt(cut, 9) == 0
    assert records_digest(cut.path / "bootstrap") == records_digest(whole.path / "bootstrap")
    first, second = whole.result(), cut.result()
    assert first is not None
    assert second is not None
    for key in ("passed", "gains", "retention", "table"):
        assert json.dumps(first[key]) == json.dumps(second[key])


def test_a_model_that_follows_instructions_is_no_base(harness: ModuleType, workspace: Workspace) -> None:
    """The model of stage 1 given as a base: warned of, because it follows what it was taught."""
    value = job_value()
    value["stages"]["explicit"]["steps"] = 60
    taught = harness.create(workspace, value)
    assert harness.attempt(taught) == 0
    model = taught.result()["export"]["merged"]
    again = harness.create(workspace, job_value(model={"base_model": model}, stages={"last": 0}))
    assert harness.attempt(again) == 0
    (warning,) = again.result()["base"]["warnings"]
    assert "in its chat template" in warning
    said = [event.text for event in harness.events(again, "note")]
    assert any("may not be a base model" in text for text in said)


def test_a_record_that_was_changed_is_not_replayed(harness: ModuleType, workspace: Workspace) -> None:
    run = harness.create(workspace, job_value())
    assert harness.attempt(run) == 0
    data = metrics_of(run)["P1"]["data"]
    path = run.path / data["file"]
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(RunError, match="SHA-256"):
        list(read_records(path, data["sha256"]))


def test_a_strategy_that_cannot_be_merged_is_refused(workspace: Workspace) -> None:
    job = parse_job(job_value(scaling={"strategy": "prefix_tuning"}), workspace.root)
    with pytest.raises(Exception, match="cannot be merged"):
        prepare(job, workspace)


def test_prompts_of_ones_own_are_a_world(harness: ModuleType, workspace: Workspace, tmp_path: Path) -> None:
    tasks = EmbeddedWorld(["copy", "double"], [1]).tasks("train", 400, 5)
    rows = [
        {"instruction": task.explicit, "question": task.implicit, "document": task.document,
         "type": task.type, "answer": task.answer}
        for task in tasks
    ]  # fmt: skip
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    value = job_value()
    value["world"] = {"source": "file", "file": str(path)}
    run = harness.create(workspace, value)
    assert harness.attempt(run) == 0
    result = run.result()
    assert result is not None
    assert result["world"] == {"name": "file", "types": ["copy", "double"]}
    assert result["passed"] == [1], result["stopped"]
    found = metrics_of(run)["P1"]["data"]
    trained = {row["prompt"] for row in read_records(run.path / found["file"], found["sha256"])}
    assert trained <= {task.explicit for task in tasks}


@pytest.mark.slow
def test_five_stages_each_with_the_model_before_it(harness: ModuleType, workspace: Workspace) -> None:
    value = job_value(evaluation={"questions": 60, "least": 60}, sampling={"max_new_tokens": 16})
    value["stages"]["last"] = 5
    value["safety"]["circuit_breaker"] = {"loss_spike": 10.0, "min_accuracy": 0.0}
    for skill, steps in zip(SKILLS, (80, 140, 100, 60, 50), strict=True):
        value["stages"][skill] |= {"prompts": 240, "steps": steps, "share": 0.07, "replay": 0.5}
    value["stages"]["revise"]["learning_rate"] = 0.0025
    run = harness.create(workspace, value)
    assert harness.attempt(run) == 0
    result = run.result()
    assert result is not None
    # Whether the fifth is good enough after fifty steps is its gate's matter; all of them are real.
    assert result["passed"][:4] == [1, 2, 3, 4], result["stopped"]
    done = metrics_of(run)
    data = [done[f"P{number}"]["data"] for number in (1, 2, 3, 4, 5)]
    assert all(found["passed"] and found["precision"]["kept"] > 0.8 for found in data)
    assert data[4]["judge"]["n"] == data[4]["n"]
    # Every stage generated with the weights of the stage before it: no two of them alike.
    weights = [read_manifest(run.path / found["file"]).about["weights"] for found in data]
    assert len(set(weights)) == len(weights)
    for number in (2, 3, 4):
        kept = {row["stage"] for row in done[f"P{number}"]["decision"]["kept"]}
        assert kept == set(SKILLS[: number - 1])
