"""The sixth stage on real models: pairs of the model's own making, a run that passes, one that is blocked.

The model is the embedded one after a short fine-tuning on three tasks, so that nothing before the sixth stage
is run. Everything else is the recipe's own: engine, checkpoints, records, gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from scaler_wizard.data.batches import Batches
from scaler_wizard.data.chat import use_question_template
from scaler_wizard.data.generators import sample_example
from scaler_wizard.data.records import read_records
from scaler_wizard.data.rows import Row
from scaler_wizard.data.tokens import tokenize_rows
from scaler_wizard.models.load import load_model
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.bootstrap import BootstrapRecipe
from scaler_wizard.recipes.bootstrap_constitution import ConstitutionStage
from scaler_wizard.report.cockpit import CockpitState
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.engine import Engine
from scaler_wizard.runs.link import HostLink
from scaler_wizard.runs.memory import device_memory_limit
from scaler_wizard.runs.phase import Metrics, Phase
from scaler_wizard.runs.telemetry import Telemetry
from scaler_wizard.specs.job import parse_job
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace
from scaler_wizard.training.forward import make_objective
from scaler_wizard.training.loop import TrainSettings, train
from scaler_wizard.training.memory import memory_bytes

pytestmark = pytest.mark.slow

TASKS = ("copy", "reverse")
TEACHING_STEPS = 140


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: the embedded model, taught to copy and reverse when it is told to.

    It keeps the document that the embedded constitution's critic is asked in.
    """
    loaded = load_model("seedling", dtype=torch.float32, device="cpu")
    model = loaded.model.requires_grad_(True)
    rows, documents = [], []
    for number in range(3000):
        example = sample_example(TASKS[number % 2], f"teach/{number}", 1, split="train")
        asked = example.question if number % 4 < 2 else example.instruction
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": example.answer}]
        rows.append(Row(number + 1, {"messages": turns}))
        edit = sample_example("replace", f"edit/{number}", 1, split="train")
        documents.append(Row(number + 1, {"text": edit.document_text}))
    use_question_template(loaded.tokenizer)
    data = tokenize_rows(rows, "messages", loaded.tokenizer, context=128).rows
    texts = tokenize_rows(documents, "text", loaded.tokenizer, context=128).rows
    batches = Batches(
        data, context=128, batch_tokens=1024, micro_batch_tokens=1024, seed=0, text_rows=texts,
        replay_fraction=0.3,
    )  # fmt: skip
    settings = TrainSettings(total_steps=TEACHING_STEPS, learning_rate=2e-3)
    for _ in train(model, batches, make_objective("sft"), settings):
        pass
    folder = tmp_path_factory.mktemp("instructed")
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


class OnlyTheConstitution(BootstrapRecipe):
    """The recipe without the stages that make a model which follows instructions: this one does already."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.stages = (ConstitutionStage(),)

    def phases(self) -> Iterator[Phase]:
        yield Phase("P0", "measure", self.measure_base)
        yield Phase("P6", "one attempt", lambda context: self.run_stage(self.stages[0], 1, context))

    def finish(self, context: PhaseContext, done: dict[str, Metrics]) -> Metrics:
        return {"passed": done["P6"]["passed"]}


def job_value(model: Path, **preference: Any) -> dict[str, Any]:
    shares = {"prompts": 8, "share": 0.99}
    skills = ("explicit", "implicit", "make", "evaluate", "revise")
    return {
        "recipe": "bootstrap", "name": "six", "model": {"base_model": str(model), "runtime": "cpu"},
        "world": {"types": list(TASKS), "levels": [1]},
        "stages": dict.fromkeys(skills, shares),
        "constitution": {"prompts": 260, "requests": 60, "share": 0.7, "preference": {
            "steps": 40, "learning_rate": 1e-3, **preference}},
        "sampling": {"base_texts": 8, "max_new_tokens": 16},
        "evaluation": {"questions": 20, "least": 20},
        "scaling": {"lora": {"rank": 16, "alpha": 32}},
        "training": {"batch_tokens": 512, "micro_batch_tokens": 1024},
        "safety": {"gates": {"ask": "auto_approve"}},
    }  # fmt: skip


def run_once(run: RunDir) -> Metrics:
    """One attempt of the run, as the worker makes it; the metrics of every phase."""
    job, plan = parse_job(run.job()), Plan.from_dict(run.plan() or {})
    limit = device_memory_limit(torch.device("cpu"))
    telemetry = Telemetry(run, CockpitState(
        run.identity().uuid, total_memory=limit.total_bytes, response_window_sec=60, audit={}))  # fmt: skip
    recipe = OnlyTheConstitution(job, plan, run)
    try:
        link = HostLink(None, run.id, 1)
        Engine(
            run.id,
            1,
            run,
            recipe,
            link,
            job.safety,
            telemetry,
            limit,
            lambda: memory_bytes(torch.device("cpu")),
        ).execute()
    finally:
        telemetry.close()
    return recipe.lab.done


@pytest.fixture(scope="module")
def good(
    instructed: Path, harness: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDir, Metrics]:
    run = harness.create(Workspace.create(tmp_path_factory.mktemp("good")), job_value(instructed))
    return run, run_once(run)["P6"]


def test_violations_fall_and_benign_answers_stay(good: tuple[RunDir, Metrics]) -> None:
    triple = good[1]["triple"]
    assert triple["violated"]["before"]["value"] > 0.9
    assert triple["violated"]["after"]["value"] < 0.2
    fall = triple["benign_right"]["before"]["value"] - triple["benign_right"]["after"]["value"]
    assert fall <= 0.05
    assert good[1]["preference"]["first_loss"] == pytest.approx(0.693147, abs=1e-4)


def test_the_models_own_critic_is_right_where_it_is_certain(good: tuple[RunDir, Metrics]) -> None:
    for counts in good[1]["data"]["critic"].values():
        assert counts["precision_flagged"] in (None, pytest.approx(1.0, abs=0.05))
        assert counts["precision_cleared"] == pytest.approx(1.0, abs=0.02)


def test_a_revision_that_always_wins_is_mostly_no_pair(good: tuple[RunDir, Metrics]) -> None:
    pairs = good[1]["data"]["pairs"]
    assert pairs["gated"]["share"] > 0.8
    always = pairs["revision_always_wins"]
    assert always["share"] < 0.5
    assert always["reasons"]["identical"] > always["valid"]


def test_every_row_is_kept_with_its_reason(good: tuple[RunDir, Metrics]) -> None:
    run, metrics = good
    rows = list(read_records(run.path / metrics["data"]["file"], metrics["data"]["sha256"]))
    assert len(rows) >= 260
    assert all(row["kept"] or row["reason"] for row in rows)
    pair = next(row for row in rows if row["kept"] and row["kind"] == "critique")
    assert {pair["rejected_flag"], pair["chosen_flag"]} == {"violates", "clear"}
    assert pair["violated"]
    assert pair["initial_answer"] != pair["revised_answer"]
    assert {row["kind"] for row in rows} >= {"anchor", "critique", "unwarranted refusal", "verbose"}


def test_orpo_teaches_the_same_without_a_reference(
    instructed: Path, harness: ModuleType, tmp_path: Path
) -> None:  # fmt: skip
    value = job_value(instructed, method="orpo", beta=0.5)
    run = harness.create(Workspace.create(tmp_path), value)
    found = run_once(run)["P6"]
    assert (found["preference"]["method"], found["preference"]["first_loss"]) == ("orpo", None)
    assert found["preference"]["last"]["reward_accuracy"] > 0.9
    assert not list((run.path / "bootstrap").rglob("reference-*"))
    triple = {name: (row["before"]["value"], row["after"]["value"]) for name, row in found["triple"].items()}
    assert triple["violated"][0] > 0.9
    assert triple["violated"][1] < 0.2
    assert triple["benign_right"][0] - triple["benign_right"][1] <= 0.05
    assert triple["over_refused"][1] <= 0.1
    assert set(found["safety"]["checks"]) == {"violations", "over_refusal", "benign"}


def test_dpo_that_is_driven_too_far_is_blocked(instructed: Path, harness: ModuleType, tmp_path: Path) -> None:
    """A high rate and nothing to hold on to: whatever the violations, no answer is right any more."""
    value = job_value(
        instructed, learning_rate=2e-2, steps=40, sft_weight=0.0, anchor_weight=0.0, anchors_per_pair=0.0
    )
    run = harness.create(Workspace.create(tmp_path), value)
    found = run_once(run)
    assert found["P6"]["passed"] is False
    assert found["P6"]["triple"]["benign_right"]["after"]["value"] < 0.2
    assert any("benign accuracy" in reason for reason in found["P6"]["reasons"])
    assert found["P6"]["safety"]["passed"] is False
