"""What a run has spent, read from its events: whatever is killed, nothing is forgotten or counted twice."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.planning.metering import metered
from scaler_wizard.planning.spend import Spent
from scaler_wizard.specs.events import (
    Event,
    GateClosed,
    GateOpened,
    PhaseDone,
    PhaseStarted,
    Progress,
    RunEnded,
    RunStarted,
    StepDone,
)


def started(time: float, attempt: int = 1) -> Event:
    return RunStarted(time=time, run="r", attempt=attempt, phases=["P0", "P1"])


def begun(time: float, phase: str) -> Event:
    return PhaseStarted(time=time, phase=phase, title=phase)


def progress(time: float, phase: str, **tokens: int) -> Event:
    return Progress(time=time, phase=phase, activity="answers", done=1, total=2, **tokens)


def step(time: float, phase: str, tokens: int) -> Event:
    return StepDone(
        time=time, phase=phase, step=1, total_steps=9, loss=1.0, grad_norm=1.0, learning_rate=0.1,
        tokens=tokens, seconds=0.1,
    )  # fmt: skip


def done(time: float, phase: str, **tokens: int) -> Event:
    return PhaseDone(time=time, phase=phase, checkpoint=phase, seconds=1.0, metrics={}, **tokens)


def asked(time: float) -> Event:
    return GateOpened(time=time, gate="P1", sentence="Go on?", deadline=time + 60)


def answered(time: float) -> Event:
    return GateClosed(time=time, gate="P1", action="approve", by="a person")


def test_an_undisturbed_run_is_the_time_of_its_events() -> None:
    found = metered([
        started(100.0), begun(103.0, "P0"), progress(110.0, "P0", generated=50, scored=4),
        progress(112.0, "P0", generated=80, scored=4), done(120.0, "P0", generated=90, scored=30),
        begun(121.0, "P1"), step(125.0, "P1", 512), step(126.0, "P1", 500),
        done(130.0, "P1", generated=7), RunEnded(time=133.0, status="completed"),
    ])  # fmt: skip
    assert found.total == Spent(33.0, 97, 30, 1012)
    assert found.phases == {"P0": Spent(17.0, 90, 30), "P1": Spent(9.0, 7, 0, 1012)}
    assert (found.cut, found.attempts) == (Spent(), 1)


def test_a_killed_attempt_is_paid_for_and_belongs_to_its_phase() -> None:
    """Both attempts' steps were trained; the second generated only what the first had not kept."""
    found = metered([
        started(0.0), begun(1.0, "P0"), done(11.0, "P0"), begun(12.0, "P1"),
        progress(20.0, "P1", generated=300), step(30.0, "P1", 512),
        started(500.0, 2), begun(504.0, "P1"), progress(506.0, "P1", generated=20),
        step(510.0, "P1", 512), done(520.0, "P1", generated=25),
    ])  # fmt: skip
    assert found.total == Spent(30.0 + 20.0, 325, 0, 1024)
    assert found.cut == Spent(19.0, 300, 0, 512)
    assert found.phases["P1"] == Spent(18.0 + 16.0, 325, 0, 1024)
    assert found.attempts == 2


def test_waiting_for_a_person_is_no_work_answered_or_killed_while_waiting() -> None:
    rest = [answered(9500.0), begun(9501.0, "P1"), done(9503.0, "P1")]
    assert metered([started(0.0), asked(2.0), *rest]).total.seconds == 2.0 + 3.0
    killed = metered([started(0.0), asked(2.0), started(9000.0, 2), asked(9001.0), *rest])
    assert killed.total.seconds == 2.0 + 1.0 + 3.0
    assert killed.cut.seconds == 2.0


def test_a_pause_is_cut_short_as_a_kill_is_and_a_completed_run_is_not() -> None:
    work = [started(0.0), begun(0.0, "P0"), step(5.0, "P0", 10)]
    paused = metered([*work, RunEnded(time=6.0, status="paused"), started(90.0, 2)])
    assert paused.cut == Spent(6.0, 0, 0, 10)
    ended = [done(6.0, "P0"), RunEnded(time=8.0, status="completed"), started(90.0, 2)]
    assert metered([*work, *ended]).cut == Spent()


def test_a_phase_that_is_done_again_after_a_rollback_is_two_in_the_total_and_one_by_itself() -> None:
    once: list[Event] = [begun(0.0, "P1"), step(4.0, "P1", 10), done(5.0, "P1")]
    found = metered([started(0.0), *once, started(0.0, 2), *once])
    assert found.total == Spent(10.0, 0, 0, 20)
    assert found.phases["P1"] == Spent(5.0, 0, 0, 10)


def test_a_clock_that_was_set_back_takes_nothing_away() -> None:
    found = metered([started(100.0), begun(101.0, "P0"), done(50.0, "P0"), begun(52.0, "P1")])
    assert found.total.seconds == 3.0


def test_events_of_a_run_from_before_tokens_were_counted_are_read() -> None:
    assert (
        metered([started(0.0), begun(1.0, "P0"), progress(2.0, "P0"), done(3.0, "P0")]).total.seconds == 3.0
    )


PHASES = st.sampled_from(["P0", "P1"])
TOKENS = st.integers(min_value=0, max_value=1000)
EVENTS: Any = st.one_of(
    st.builds(started, st.just(0.0), st.just(1)),
    st.builds(begun, st.just(0.0), PHASES),
    st.builds(lambda phase, n: progress(0.0, phase, generated=n), PHASES, TOKENS),
    st.builds(lambda phase, n: step(0.0, phase, n), PHASES, TOKENS),
    st.builds(lambda phase, n: done(0.0, phase, scored=n), PHASES, TOKENS),
    st.just(asked(0.0)), st.just(answered(0.0)), st.just(RunEnded(status="paused")),
)  # fmt: skip


@given(st.lists(st.tuples(EVENTS, st.floats(min_value=0.0, max_value=1e6)), max_size=30))
def test_no_event_makes_a_total_smaller_and_no_part_is_larger_than_the_whole(
    drawn: list[tuple[Event, float]],
) -> None:
    events = [event.model_copy(update={"time": time}) for event, time in drawn]
    before = metered([])
    for n in range(1, len(events) + 1):
        found = metered(events[:n])
        for name in ("seconds", "generated", "scored", "trained"):
            assert getattr(found.total, name) >= getattr(before.total, name)
            assert getattr(found.cut, name) >= getattr(before.cut, name)
            assert getattr(found.cut, name) <= getattr(found.total, name) + 1e-6
        before = found
