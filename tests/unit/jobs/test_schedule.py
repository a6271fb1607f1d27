"""The decision what is started, tried again, given up and killed: by examples, and by any history."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.jobs.schedule import (
    ADVANCED,
    GAVE_UP,
    INTERRUPTED,
    REBOOTED,
    EndedWorker,
    Fail,
    LiveWorker,
    QueuedRun,
    Requeue,
    Rules,
    Snapshot,
    count_crashes,
    decide,
    settle,
)
from scaler_wizard.jobs.watchdog import ACTIVITIES, Limits
from scaler_wizard.store.records import Attempt

RULES = Rules(retries=2, restarts=3, restart_window_sec=300)
RUN = QueuedRun("a", "continual", 0, 1.0, "cpu", "assistant")
DEAD = EndedWorker("a", "failed", clean=False, cause="signal", reason="killed", advice="resume", crashes=1)
WORKER = LiveWorker("a", "cpu", "step", 1.0)


def waits(snapshot: Snapshot, now: float = 100.0) -> dict[str, str]:
    decision = decide(snapshot, now)
    assert not decision.start
    return dict(decision.waiting)


def test_by_priority_then_age_one_on_a_device() -> None:
    runs = (
        replace(RUN, id="old", lineage=None),
        replace(RUN, id="low", lineage=None, priority=-10, created=0.0),
        replace(RUN, id="high", lineage=None, priority=10, created=9.0),
        replace(RUN, id="gpu", lineage=None, device="cuda", created=5.0),
    )
    decision = decide(Snapshot(queued=runs), 100.0)
    assert decision.start == ("high", "gpu")
    assert decision.waiting == (("old", "cpu is in use"), ("low", "cpu is in use"))


def test_a_paused_file_holds_its_lineage_and_nothing_else() -> None:
    grow = replace(RUN, id="grow", lineage=None, recipe="grow", created=2.0)
    paused = Snapshot(queued=(RUN, grow), paused_lineages=frozenset({"assistant"}))
    assert decide(paused, 100.0).start == ("grow",)
    assert "paused" in dict(decide(paused, 100.0).waiting)["a"]


def test_the_next_file_follows_a_completed_one_at_once_and_others_at_the_next_look() -> None:
    for status, start in (("completed", ("a",)), ("paused", ()), ("stopped", ()), ("failed", ())):
        ended = EndedWorker("b", status, clean=True, lineage="assistant")
        assert decide(Snapshot(queued=(RUN,), ended=(ended,)), 100.0).start == start


@pytest.mark.parametrize(
    ("snapshot", "why"),
    [
        (Snapshot(queued=(RUN,), held="held by ann: lunch"), "lunch"),
        (Snapshot(queued=(RUN,), disk="refuse"), "disk"),
        (Snapshot(queued=(RUN,), blocked={"continual": "sign the changed config"}), "sign"),
        (Snapshot(queued=(replace(RUN, not_before=130.0),)), "in 30 s"),
        (Snapshot(queued=(RUN,), workers=(replace(WORKER, lineage="assistant", device="x"),)), "at work"),
        (Snapshot(queued=(RUN,), busy_devices=frozenset({"cpu"})), "cpu is in use"),
    ],
)  # fmt: skip
def test_each_reason_to_wait_is_said(snapshot: Snapshot, why: str) -> None:
    assert why in waits(snapshot)["a"]


def test_little_disk_space_warns_but_starts() -> None:
    assert decide(Snapshot(queued=(RUN,), disk="warn"), 100.0).start == ("a",)


def test_a_death_without_a_word_is_a_restart_at_once_a_failure_is_a_retry_at_low() -> None:
    assert settle(DEAD, RULES, 100.0) == Requeue("a", "killed", "resume", 0.0)
    said = replace(DEAD, clean=True, crashes=0)
    first = settle(said, RULES, 100.0)
    assert first == Requeue("a", "killed", "resume", 105.0, priority=-10, retries=1)
    assert settle(replace(said, retries=1), RULES, 100.0) == Requeue("a", "killed", "resume", 110.0, -10, 2)
    assert settle(replace(said, retries=2), RULES, 100.0) == Fail("a", "killed", "resume")
    assert settle(replace(said, rolled_back=True), RULES, 100.0) == Fail("a", "killed", "resume")


def test_too_many_deaths_fail_with_the_evidence() -> None:
    assert isinstance(settle(replace(DEAD, crashes=3), RULES, 100.0), Requeue)
    given_up = settle(replace(DEAD, crashes=4), RULES, 100.0)
    assert isinstance(given_up, Fail)
    assert "4 times" in given_up.reason
    assert "killed" in given_up.reason
    assert settle(DEAD, Rules(), 100.0) == Fail("a", "killed", "resume"), "in the foreground a person decides"


def test_a_full_disk_waits_for_space_and_ends_paused() -> None:
    full = replace(DEAD, cause="disk_full", status="paused", clean=True)
    again = settle(full, RULES, 100.0)
    assert isinstance(again, Requeue)
    assert (again.not_before, again.retries, again.priority) == (160.0, None, None)
    assert settle(replace(full, crashes=4), RULES, 100.0) is None


def test_what_ended_by_its_own_word_stands() -> None:
    for status in ("completed", "paused", "stopped"):
        assert settle(EndedWorker("a", status, clean=True), RULES, 100.0) is None


def attempt(number: int, outcome: str, at: float, boot: str = "now") -> Attempt:
    return Attempt("a", number, 1, boot, 0.0, at, 1.0, outcome)


def test_crashes_count_in_the_window_or_since_the_last_commit() -> None:
    def count(*attempts: Attempt) -> int:
        return count_crashes(attempts, "now", 10_000.0, 300.0)

    assert count(attempt(2, INTERRUPTED, 100.0), attempt(1, INTERRUPTED, 50.0)) == 2, "no commit between"
    assert count(attempt(2, ADVANCED, 9_000.0), attempt(1, INTERRUPTED, 8_000.0)) == 0, "long ago"
    assert count(attempt(2, ADVANCED, 9_900.0), attempt(1, ADVANCED, 9_800.0)) == 2, "in the window"
    assert count(attempt(2, "paused", 9_900.0), attempt(1, INTERRUPTED, 100.0)) == 0
    assert count(attempt(2, INTERRUPTED, 9_900.0, "before"), attempt(1, REBOOTED, 9_800.0)) == 0, "a reboot"
    assert count(attempt(2, INTERRUPTED, 9_900.0), attempt(1, GAVE_UP, 9_900.0)) == 1, "resumed by a person"


def test_the_watchdog_knows_what_a_worker_is_doing() -> None:
    limits = Limits(load=10, step=5, save=20, stop=2)
    for activity, limit in (("load", 10), ("step", 5), ("save", 20), ("stop", 2), ("gate", 5)):
        for silent, killed in ((limit, False), (limit + 0.1, True)):
            worker = replace(WORKER, activity=activity, silent_sec=silent)
            kill = decide(Snapshot(workers=(worker,), limits=limits), 1.0).kill
            assert bool(kill) is killed, (activity, silent)
    assert decide(Snapshot(limits=limits), 1e9).kill == (), "an idle daemon is healthy"


def test_memory_over_the_limit_is_killed_once() -> None:
    worker = replace(WORKER, resident_bytes=2 << 30, memory_limit=1 << 30)
    kill = decide(Snapshot(workers=(worker,)), 1.0).kill
    assert [item.cause for item in kill] == ["memory"]
    assert "2.00 GiB" in kill[0].why
    assert decide(Snapshot(workers=(replace(worker, being_killed=True),)), 1.0).kill == ()


# Any snapshot, any history

NAMES = st.sampled_from(["a", "b", "c", "d", "e", "f"])
DEVICES = st.sampled_from(["cpu", "cuda"])
LINEAGES = st.sampled_from([None, "x", "y"])
QUEUED = st.builds(
    QueuedRun, NAMES, st.sampled_from(["grow", "continual"]), st.sampled_from([-10, 0, 10]),
    st.floats(0, 9), DEVICES, LINEAGES, st.floats(0, 200),
)  # fmt: skip
WORKERS = st.builds(
    LiveWorker, st.sampled_from(["p", "q", "r"]), DEVICES, st.sampled_from(ACTIVITIES), st.floats(0, 1000),
    LINEAGES,
)  # fmt: skip
SNAPSHOTS = st.builds(
    Snapshot,
    queued=st.lists(QUEUED, max_size=6, unique_by=lambda run: run.id).map(tuple),
    workers=st.lists(WORKERS, max_size=2, unique_by=lambda worker: worker.device).map(tuple),
    paused_lineages=st.frozensets(st.sampled_from(["x", "y"])),
    busy_devices=st.frozensets(DEVICES),
    disk=st.sampled_from(["ok", "warn", "refuse"]),
)


@given(SNAPSHOTS, st.floats(0, 300))
def test_never_two_of_a_device_or_a_lineage_and_every_run_is_accounted_for(
    snapshot: Snapshot, now: float
) -> None:
    decision = decide(snapshot, now)
    started = [run for run in snapshot.queued if run.id in decision.start]
    at_work = (*started, *snapshot.workers)
    assert max(Counter(item.device for item in at_work).values(), default=0) <= 1
    lineages = Counter(run.lineage for run in started if run.lineage)
    assert all(count == 1 for count in lineages.values())
    assert not set(lineages) & {worker.lineage for worker in snapshot.workers}
    assert not set(lineages) & snapshot.paused_lineages
    assert all(run.not_before <= now for run in started)
    waiting = [run for run, _ in decision.waiting]
    assert sorted([*decision.start, *waiting]) == sorted(run.id for run in snapshot.queued), "nothing lost"
    if snapshot.disk == "refuse":
        assert not started


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0.1, 1000)), min_size=60, max_size=60),
    st.integers(0, 4), st.integers(0, 3),
)  # fmt: skip
def test_restarts_and_retries_are_bounded_whatever_happens(
    deaths: list[tuple[bool, bool, float]], restarts: int, retries: int
) -> None:
    """Each entry: (died without a word, had committed something, seconds it lived)."""
    rules = Rules(retries, restarts, 300.0)
    past: list[Attempt] = []
    monotonic, tried, in_a_row = 0.0, 0, 0
    for died, committed, seconds in deaths:
        monotonic += seconds
        crashes = count_crashes(past, "now", monotonic, rules.restart_window_sec) + 1
        ended = EndedWorker("a", "failed", clean=not died, retries=tried, crashes=crashes)
        decided = settle(ended, rules, 1.0)
        assert isinstance(decided, Requeue | Fail), "never lost: tried again, or failed with its reason"
        outcome = (ADVANCED if committed else INTERRUPTED) if died else "failed"
        past.insert(0, attempt(len(past) + 1, outcome, monotonic))
        if isinstance(decided, Fail):
            return
        in_a_row = in_a_row + 1 if died and not committed else 0
        assert in_a_row <= restarts, "without progress it ends"
        tried = tried if decided.retries is None else decided.retries
        assert tried <= retries
        recent = [item for item in past if monotonic - (item.heartbeat_monotonic or 0.0) <= 300]
        assert sum(item.outcome in (ADVANCED, INTERRUPTED) for item in recent) <= restarts


@given(SNAPSHOTS, st.floats(0, 1e6), st.floats(-86_400, 86_400))
def test_a_wall_clock_a_day_off_kills_and_fails_nothing(snapshot: Snapshot, now: float, error: float) -> None:
    ended = replace(snapshot, ended=(DEAD,), rules=RULES)
    right, wrong = decide(ended, now), decide(ended, now + error)
    assert right.kill == wrong.kill
    assert right.fail == wrong.fail
    assert [item.run for item in right.requeue] == [item.run for item in wrong.requeue]
