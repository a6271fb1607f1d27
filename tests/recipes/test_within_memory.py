"""A training inside a phase: its sizes after a measured step, at the contract's limit, and after a resume."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from scaler_wizard.errors import LimitError
from scaler_wizard.jobs.prepare import parse_job, prepare
from scaler_wizard.recipes.grow_session import GrowSession
from scaler_wizard.recipes.session import ModelSession, Training
from scaler_wizard.report.cockpit import CockpitState
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.link import HostLink
from scaler_wizard.runs.step_checkpoints import StepCheckpoints
from scaler_wizard.runs.telemetry import Telemetry
from scaler_wizard.safety.breaker import Breaker
from scaler_wizard.safety.limits import MemoryLimit
from scaler_wizard.specs.sections import BreakerSection
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.learned_sizes import learned_sizes
from scaler_wizard.store.training_mark import TrainingMark, read_mark, write_mark
from scaler_wizard.store.workspace import Workspace

TOKENS = 1024


@dataclass
class Bench:
    """One session, and a phase around every training of it."""

    session: ModelSession
    workspace: Workspace
    in_use: list[int] = field(default_factory=lambda: [0])
    """Bytes in use at each look; the last one goes on."""
    limit: MemoryLimit = field(default_factory=lambda: MemoryLimit(1 << 40))

    def read(self) -> int:
        return self.in_use.pop(0) if len(self.in_use) > 1 else self.in_use[0]

    def run(self, mark: TrainingMark | None = None) -> tuple[Training, list[str], PhaseContext]:
        """Three steps after an earlier attempt's mark: the training, the notes, the phase."""
        run = self.workspace.new_run_dir("within")
        if mark is not None:
            write_mark(run, mark)
        phase = self.session.plan.phase("P1")
        training = self.session.training(phase, self.session.rows_at(phase.context).rows, [], 3)
        telemetry = Telemetry(run, CockpitState(run.identity().uuid, total_memory=1 << 40))
        context = PhaseContext(
            "P1", run, CheckpointStore(run), telemetry, HostLink(None, run.id, 2), Breaker(BreakerSection()),
            self.limit, self.read, StepCheckpoints(run, 2, 60.0),
        )  # fmt: skip
        try:
            self.session.run(context, training)
        finally:
            context.step_checkpoints.close()
            telemetry.close()
        texts = [event.text for event in run.read_events() if event.type == "note"]
        return training, [text for text in texts if not text.startswith("training layers")], context


@pytest.fixture(scope="module")
def session(harness: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ModelSession:
    folder = tmp_path_factory.mktemp("within")
    model = harness.save_tiny(folder / "model", "llama")
    rows, texts = harness.write_messages(folder / "rows.jsonl"), harness.write_texts(folder / "t.txt")
    value = harness.job_value(
        model, training={"batch_tokens": TOKENS, "micro_batch_tokens": None},
        dataset={"source": "local", "identifier": str(rows), "text_file": str(texts)},
    )  # fmt: skip
    prepared = prepare(parse_job(value, folder), Workspace.create(folder / "w"))
    return GrowSession(prepared.job, prepared.plan, prepared.plan.target_context)


@pytest.fixture
def bench(session: ModelSession, tmp_path: Path) -> Bench:
    return Bench(session, Workspace.create(tmp_path / "w"))


def test_a_training_that_fits_keeps_its_size_and_says_nothing(bench: Bench) -> None:
    training, notes, context = bench.run()
    assert training.sizes.changes == [(0, TOKENS)]
    assert notes == []
    mark = read_mark(context.run_dir)
    assert mark is not None
    assert (mark.training, mark.attempt, mark.active) == ("P1", 2, False)
    assert learned_sizes(bench.workspace.learned) == ()


def test_a_first_step_beyond_the_limit_brings_the_size_down_once(bench: Bench) -> None:
    # Less than this process holds already: whatever the step took, it was too much.
    bench.limit = MemoryLimit(1 << 20)
    training, notes, _ = bench.run()
    (first, planned), (second, corrected) = training.sizes.changes
    assert (first, planned, second) == (0, TOKENS, 1)
    assert corrected < TOKENS // 4
    assert "the first step took" in notes[0]
    assert len(notes) == 1
    (size,) = learned_sizes(bench.workspace.learned)
    assert (size.tokens, size.cause) == (corrected, "measured")


def test_more_in_use_than_the_contract_allows_halves_from_the_next_step_on(bench: Bench) -> None:
    bench.limit = MemoryLimit(1 << 40)
    over = (1 << 40) - 1
    # Two looks a step: the training's own, then the engine's, which finds the room that was made.
    bench.in_use = [0, 0, over, 0, 0]
    training, notes, _ = bench.run()
    assert training.sizes.changes[0] == (0, TOKENS)
    step, tokens = training.sizes.changes[1]
    assert (step, tokens <= TOKENS // 2, len(training.sizes.changes)) == (2, True, 2)
    assert "too much memory was in use before step 3" in notes[0]
    assert training.state.step == 3


def test_a_limit_that_no_size_meets_ends_the_run_with_advice(bench: Bench) -> None:
    bench.in_use = [(1 << 40) - 1]
    with pytest.raises(LimitError, match="memory in use") as caught:
        bench.run()
    assert "micro_batch_tokens" in caught.value.todo


def test_a_resumed_training_packs_its_steps_as_before(bench: Bench) -> None:
    changes = ((0, TOKENS), (2, 200))
    training, _, context = bench.run(TrainingMark("P1", 1, changes, True, None))
    assert tuple(training.sizes.changes) == changes
    mark = read_mark(context.run_dir)
    assert mark is not None
    assert (mark.sizes, mark.attempt) == (changes, 2)
    other, _, _ = bench.run(TrainingMark("P2", 1, changes, True, None))
    assert other.sizes.changes == [(0, TOKENS)], "another phase's sizes are not this one's"
