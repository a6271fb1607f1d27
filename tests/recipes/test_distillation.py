"""Distillation on real weights at toy size: a small random student learns from the embedded model."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from scaler_wizard.errors import BreakerTrippedError, IncompatibleModelError
from scaler_wizard.models.hashing import state_hash
from scaler_wizard.models.load import load_model
from scaler_wizard.models.tiny import tiny_tokenizer
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.distillation import check_same_tokens, distil
from scaler_wizard.recipes.grow_session import GrowSession
from scaler_wizard.report.cockpit import CockpitState
from scaler_wizard.runs.context import InterruptedPhase, PhaseContext
from scaler_wizard.runs.link import HostLink
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.runs.step_checkpoints import StepCheckpoints
from scaler_wizard.runs.telemetry import Telemetry
from scaler_wizard.safety.breaker import Breaker
from scaler_wizard.safety.limits import MemoryLimit
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

# PEFT 0.21.2 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

STEPS = 25


class Caller(HostLink):
    """A host's end of the line that asks for a pause once `when` is true."""

    def __init__(self, when: Callable[[], bool] = lambda: False) -> None:
        super().__init__(None, "run", 1)
        self.when = when

    def request(self, op: str, **fields: Any) -> dict[str, Any] | None:
        return {"command": {"action": "pause"}} if op == "beat" and self.when() else None


@dataclass
class Stage:
    """A run before its last phase, and what `distil` needs to play it."""

    job: GrowJob
    plan: Plan
    run: RunDir
    session: GrowSession

    def distil(self, link: HostLink | None = None, partial: Any = None) -> Metrics:
        telemetry = Telemetry(self.run, CockpitState(self.run.identity().uuid, total_memory=1 << 40))
        context = PhaseContext(
            "P4", self.run, CheckpointStore(self.run), telemetry, link or Caller(),
            Breaker(self.job.safety.circuit_breaker), MemoryLimit(1 << 40), lambda: 0,
            StepCheckpoints(self.run, 1, 60.0),
        )  # fmt: skip
        section = self.job.scaling.distillation
        assert section is not None
        phase = replace(self.plan.phase("P4"), steps=STEPS, context=self.plan.base_context)
        try:
            return distil(context, self.session, section, phase, self.run.path / "teacher", partial)
        finally:
            context.step_checkpoints.close()
            telemetry.close()

    def weights(self) -> str:
        trained = self.session.adapted.named_parameters()
        return state_hash({name: value for name, value in trained if value.requires_grad})

    def restart(self) -> Any:
        """A new process's session from the newest checkpoint, which is returned if it is a partial one."""
        self.session = GrowSession(self.job, self.plan, self.plan.target_context)
        checkpoint = CheckpointStore(self.run).newest_verified().checkpoint
        assert checkpoint is not None
        self.session.load(checkpoint.path)
        return checkpoint if checkpoint.kind == "step" else None


@pytest.fixture
def stage(harness: ModuleType, workspace: Workspace, tmp_path: Path) -> Callable[..., Stage]:
    def make(
        strategy: str = "full", breaker: dict[str, Any] | None = None, chat: bool = False, **distillation: Any
    ) -> Stage:
        texts = harness.write_texts(tmp_path / "rows.txt")
        data = {"identifier": str(texts)}
        if chat:
            rows = harness.write_messages(tmp_path / "rows.jsonl")
            data = {"identifier": str(rows), "text_file": str(texts)}
        student = harness.save_tiny(tmp_path / "student", "llama")
        value = harness.job_value(
            student,
            scaling={"strategy": strategy, "distillation": {"teacher": "seedling", **distillation}},
            training={"learning_rate": 3e-3, "final_steps": STEPS},
            safety={"circuit_breaker": breaker or {"mode": "warn"}, "gates": {"ask": "auto_approve"}},
            dataset={"source": "local", "max_rows": None, "holdout_fraction": 0.2, **data},
        )
        run = harness.create(workspace, value)
        job, plan = GrowJob.parse(run.job()), Plan.from_dict(run.plan())
        session = GrowSession(job, plan, plan.target_context)
        with CheckpointStore(run).stage("P1") as staging:
            session.save(staging.path)
            staging.commit(step=0)
        return Stage(job, plan, run, session)

    return make


def means(result: Metrics, name: str) -> list[float]:
    return [result["held_out"][model][name]["mean"] for model in ("start", "ce_only", "distilled")]


def living_models() -> list[LlamaForCausalLM]:
    """Every model in this process."""
    gc.collect()
    # isinstance() would wake the lazy proxies that libraries leave behind.
    return [item for item in gc.get_objects() if type(item) is LlamaForCausalLM]


def test_the_distilled_student_is_closer_to_its_teacher(stage: Callable[..., Stage]) -> None:
    """Same steps from the same start: significantly closer than on cross-entropy alone; both are reported."""
    set_up = stage(weight=0.8, temperature=1.5, top_k=32)
    start = set_up.weights()
    others = {id(item) for item in living_models()}  # of earlier tests in this process
    result = set_up.distil()
    before, ce_only, distilled = means(result, "divergence")
    assert distilled < ce_only < before
    difference = result["distilled_minus_ce_only"]["divergence"]
    assert difference["ci95"][1] < 0
    assert difference["mean"] == pytest.approx(distilled - ce_only)
    assert max(means(result, "nll")[1:]) < means(result, "nll")[0]
    assert result["teacher"]["nll"]["mean"] < means(result, "nll")[2], (
        "the teacher knows more than its student"
    )
    assert result["steps"] == STEPS
    assert 0.5 < result["settings"]["kept_mass"] < 1
    assert set_up.weights() != start
    alive = living_models()
    assert sum(item is set_up.session.adapted for item in alive) == 1
    left = [item for item in alive if item.config.hidden_size == 128 and id(item) not in others]
    assert not left, "the teacher is still in memory"


def test_the_baseline_is_plain_training_from_the_same_start(stage: Callable[..., Stage]) -> None:
    """With weight 0 the teacher has no say: both trainings take the same steps to the same model."""
    result = stage(weight=0.0, chat=True).distil()
    for model in ("start", "ce_only", "distilled"):
        assert result["held_out"][model]["accuracy"]["n"] == 8
    for name in ("nll", "divergence"):
        _, ce_only, distilled = means(result, name)
        assert distilled == pytest.approx(ce_only, rel=1e-4)


@pytest.mark.parametrize("part", ["ce_only", "distilled"])
def test_paused_in_either_training_and_resumed_ends_the_same(
    stage: Callable[..., Stage], harness: ModuleType, part: str
) -> None:
    set_up = stage(strategy="lora", hidden_weight=0.5, kind="js")
    first_steps = 3 if part == "ce_only" else STEPS + 3
    link = Caller(lambda: len(harness.events(set_up.run, "step")) >= first_steps)
    with pytest.raises(InterruptedPhase):
        set_up.distil(link)
    partial = set_up.restart()
    assert partial is not None
    assert (partial.path / "distillation.json").read_text().strip() == f'{{"part": "{part}"}}'
    assert 0 < partial.step <= STEPS
    resumed = set_up.distil(partial=partial)
    weights = set_up.weights()

    # The same phase once more, uninterrupted, from the checkpoint before it.
    (set_up.run.path / "phase_memo.json").unlink()
    set_up.session.load(CheckpointStore(set_up.run).chain()[-1].path)
    assert set_up.distil() == resumed
    assert set_up.weights() == weights


def test_the_breaker_watches(stage: Callable[..., Stage]) -> None:
    """A limit that no training can keep stops it before a weight moves."""
    set_up = stage(breaker={"max_grad_norm": 1e-6})
    start = set_up.weights()
    with pytest.raises(BreakerTrippedError, match="gradient"):
        set_up.distil()
    assert set_up.weights() == start


def test_a_teacher_with_other_tokens_is_refused() -> None:
    seedling = load_model("seedling", dtype=torch.float32, device="cpu").tokenizer
    check_same_tokens(seedling, seedling)
    with pytest.raises(IncompatibleModelError, match=r"token 0 of the student"):
        check_same_tokens(seedling, tiny_tokenizer())
