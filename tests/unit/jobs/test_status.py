"""The status picture: a pure fold over rows and events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from scaler_wizard.cli.status import render
from scaler_wizard.jobs.status import (
    Course,
    DaemonState,
    Snapshot,
    alerts,
    fold,
    fold_course,
    gap_class,
)
from scaler_wizard.specs.events import PhaseStarted, ProbeDone, Progress, RunStarted, StepDone
from scaler_wizard.store.records import Gate, Run, Version
from scaler_wizard.store.states import RunStatus


def run(name: str, status: RunStatus, **changes: Any) -> Run:
    fields: dict[str, Any] = {
        "id": name, "uuid": name, "name": name, "recipe": "continual", "status": status, "phase": "P1",
        "priority": 0, "not_before": 0.0, "job": {}, "job_hash": "", "contract_hash": None, "created": 1.0,
        "updated": 2.0, "host": None, "host_pid": None, "host_boot_id": None, "error": None, "advice": None,
    }  # fmt: skip
    return Run(**{**fields, **changes})


def step(
    number: int, loss: float, at: float, eta: float | None = None, accuracy: float | None = None
) -> StepDone:
    return StepDone(
        phase="P1", step=number, total_steps=100, loss=loss, grad_norm=1.0, learning_rate=1e-3, tokens=200,
        seconds=0.5, eta_sec=eta, time=at, memory_bytes=7,
    )  # fmt: skip


def picture(*runs: Run, **changes: Any) -> dict[str, Any]:
    return fold(Snapshot(now=100.0, workspace="/w", runs=runs, **changes))


def test_an_empty_workspace() -> None:
    found = picture()
    assert found["daemon"] is None
    assert found["current"] is None
    assert found["alerts"] == []
    assert set(found["queue"]["counts"]) == {str(status) for status in RunStatus}
    json.dumps(found)


def test_the_queue_in_its_order() -> None:
    found = picture(
        run("late", RunStatus.QUEUED, created=5.0),
        run("early", RunStatus.QUEUED, created=1.0),
        run("urgent", RunStatus.QUEUED, created=9.0, priority=10),
        run("again", RunStatus.QUEUED, priority=-10, retries=1, not_before=130.0),
        run("held", RunStatus.PAUSED, job={"file": {"name": "sub/a.jsonl"}}),
    )
    assert [one["run"] for one in found["queue"]["next"]] == ["urgent", "early", "late", "again"]
    assert found["queue"]["next"][-1]["waits_sec"] == 30.0
    assert found["queue"]["counts"]["queued"] == 4
    assert found["queue"]["paused_runs"] == ["held (sub/a.jsonl)"]


def test_the_course_of_a_training() -> None:
    events = [PhaseStarted(phase="P1", title="Learn", time=1.0)]
    course = fold_course([*events, *(step(n, 2.0 + n % 2, 10.0 + n, eta=60.0) for n in range(1, 41))], 70.0)
    assert (course.phase, course.activity, course.step, course.total_steps) == ("P1", "training", 40, 100)
    assert course.loss == pytest.approx(2.5)
    assert course.tokens_per_sec == pytest.approx(400.0)
    assert course.eta_sec == pytest.approx(40.0), "told 20 s ago"
    assert course.memory_bytes == 7
    assert course.gap is None


def test_the_eta_never_falls_below_zero_and_ends_with_its_phase() -> None:
    events: list[Any] = [step(1, 2.0, 10.0, eta=5.0)]
    assert fold_course(events, 99.0).eta_sec == 0.0
    assert fold_course([*events, PhaseStarted(phase="P2", title="", time=11.0)], 12.0).eta_sec is None


def test_a_new_attempt_starts_its_numbers_anew() -> None:
    events = [step(1, 9.0, 1.0), RunStarted(run="a", attempt=2, phases=["P0"]), step(2, 1.0, 2.0)]
    assert fold_course(events, 3.0).loss == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("gap", "name"), [(0.29, "good"), (0.3, "watch"), (0.5, "watch"), (0.51, "overfit"), (-1.0, "good")]
)
def test_gap_classes(gap: float, name: str) -> None:
    assert gap_class(gap) == name


def test_gap_and_accuracy_come_from_probes() -> None:
    answers = [{"question": str(n), "answer": "x", "right": n >= 30} for n in range(60)]
    probe = ProbeDone(phase="P1", probe="checked", result={"validation_loss": 1.4, "answers": answers})
    course = fold_course([step(1, 1.0, 1.0), probe], 2.0)
    assert course.gap == pytest.approx(0.4)
    assert course.gap_class == "watch"
    assert course.accuracy_20 == 1.0
    assert course.accuracy_50 == pytest.approx(30 / 50)
    assert [one["question"] for one in course.examples] == ["57", "58", "59"]


def test_a_record_of_another_shape_is_passed_over() -> None:
    for result in ({"answers": 3}, {"answers": [1, {"right": "yes"}]}, {"validation_loss": "low"}, {}):
        assert fold_course([ProbeDone(phase="P0", probe="p", result=result)], 1.0) == Course()


def test_alerts_say_the_worst_first() -> None:
    gate = Gate(1, "g", "P2", "Ready?", 1.0, 9.0, None, None, None, None, None, None)
    snapshot = Snapshot(
        now=100.0, workspace="/w",
        runs=(
            run("bad", RunStatus.FAILED, error="no usable row", advice="mend it"),
            run("cut", RunStatus.RUNNING),
        ),
        gates=(gate,), free_bytes=2 * 10**9,
        daemon=DaemonState(1, 1.0, "lunch", {"big.jsonl": "no room"}, ("the config changed",)),
    )  # fmt: skip
    found = [(one["severity"], one["text"]) for one in alerts(snapshot)]
    assert [severity for severity, _ in found] == ["critical"] * 3 + ["warn"] * 4
    text = "\n".join(line for _, line in found)
    for part in (
        "the config changed", "2.0 GB are free; no job starts below 10 GB",
        "bad failed: no usable row; mend it",
        "big.jsonl waits in the inbox: no room", "paused: lunch", "run g waits for you: Ready?",
        "cut was cut off",
    ):  # fmt: skip
        assert part in text


def test_disk_warnings() -> None:
    def texts(free: float) -> list[str]:
        snapshot = Snapshot(now=1.0, workspace="/w", runs=(), free_bytes=int(free))
        return [one["severity"] for one in alerts(snapshot)]

    assert [texts(free) for free in (60e9, 50e9, 49e9, 10e9, 9e9)] == [
        [],
        [],
        ["warn"],
        ["warn"],
        ["critical"],
    ]


def test_a_run_without_its_worker_is_shown_as_interrupted() -> None:
    dead = picture(run("cut", RunStatus.RUNNING))["current"]
    assert dead["status"] == "interrupted"
    assert picture(run("a", RunStatus.RUNNING), alive=frozenset({"a"}))["current"]["status"] == "running"


def test_the_picture_can_be_drawn() -> None:
    version = Version(1, "assistant", 3, "current", "", "", None, "a", "learned [bold]a[/]", 1.0, {})
    probe = ProbeDone(
        phase="P1", probe="p",
        result={"validation_loss": 9.0, "answers": [{"question": "[red]2+2", "answer": "4", "right": True}]},
    )  # fmt: skip
    answer = picture(
        run("a", RunStatus.RUNNING, job={"file": {"name": "[x].jsonl"}}),
        run("b", RunStatus.QUEUED, priority=10, retries=1, not_before=400.0),
        run("c", RunStatus.FAILED, error="[/]broken"),
        events=[step(5, 1.0, 90.0, eta=30.0), probe], alive=frozenset({"a"}), versions=(version,),
        daemon=DaemonState(17, 40.0),
    )  # fmt: skip
    console = Console(record=True, width=120)
    console.print(render(answer))
    text = console.export_text()
    for part in (
        "daemon running, process 17, up 1 min", "1 queued", "1.  b", "high", "try 2", "in 5 min",
        "a ([x].jsonl): running [P1]", "5/100", "20 s left", "gap +8.000 overfit", "right: [red]2+2 -> 4",
        "v003", "learned [bold]a[/]", "! c failed: [/]broken",
    ):  # fmt: skip
        assert part in text, part


def test_progress_is_shown_where_nothing_is_trained() -> None:
    event = Progress(phase="P0", activity="easy", done=3, total=9, eta_sec=4.0, time=98.0)
    found = picture(run("a", RunStatus.RUNNING), events=[event], alive=frozenset({"a"}))["current"]
    assert (found["activity"], found["done"], found["total"], found["eta_sec"]) == ("easy", 3, 9, 2.0)
