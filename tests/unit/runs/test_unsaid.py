"""What a killed attempt committed and could not tell of any more."""

from __future__ import annotations

from pathlib import Path

from scaler_wizard.runs.unsaid import unsaid
from scaler_wizard.specs.events import PhaseDone, PhaseStarted, RolledBack
from scaler_wizard.store.checkpoint_files import Checkpoint


def committed(name: str, created: float = 130.0) -> Checkpoint:
    phase = name.rpartition("-")[0]
    return Checkpoint(name, Path(name), phase, "phase", 3, created, None, {}, {"loss": 1.5}, {}, "00")


def told(name: str) -> PhaseDone:
    return PhaseDone(phase=name.rpartition("-")[0], checkpoint=name, seconds=1.0, metrics={})


def test_only_what_was_never_told_is_left() -> None:
    begun = PhaseStarted(time=100.0, phase="P1", title="a phase")
    chain = [committed("P0-0001"), committed("P1-0002")]
    ((event, checkpoint),) = unsaid([told("P0-0001"), begun], chain)
    assert (event.phase, event.checkpoint, event.metrics) == ("P1", "P1-0002", {"loss": 1.5})
    assert event.seconds == 30.0
    assert checkpoint is chain[1]
    assert unsaid([told("P0-0001"), begun, told("P1-0002")], chain) == []


def test_a_phase_that_is_done_again_after_a_rollback_is_told_again() -> None:
    back = RolledBack(phase="P0", checkpoint="P0-0001", seconds=0.1)
    events = [told("P0-0001"), told("P1-0002"), back]
    assert [e.checkpoint for e, _ in unsaid(events, [committed("P0-0001"), committed("P1-0003")])] == [
        "P1-0003"
    ]


def test_a_clock_that_was_set_back_and_a_beginning_that_was_lost_are_no_time() -> None:
    begun = PhaseStarted(time=500.0, phase="P1", title="a phase")
    assert [event.seconds for event, _ in unsaid([begun], [committed("P1-0001")])] == [0.0]
    assert [event.seconds for event, _ in unsaid([], [committed("P1-0001")])] == [0.0]
