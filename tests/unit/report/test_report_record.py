from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.report.record import load_record, metrics_of
from scaler_wizard.report.values import interval, number, text
from scaler_wizard.specs.events import PhaseDone, PhaseStarted, RolledBack, RunEnded, RunStarted, StepDone

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(anything)
def test_a_number_is_finite_or_absent(value: Any) -> None:
    found = number(value)
    assert found is None or (abs(found) <= 1e18 and not isinstance(value, bool))


@given(anything, st.integers(3, 50))
def test_a_text_is_short_and_printable(value: Any, limit: int) -> None:
    shown = text(value, limit)
    assert len(shown) <= limit
    assert all(char.isprintable() or char in "\n\t" for char in shown)


def test_an_interval_is_two_numbers_in_order() -> None:
    assert interval([0.9, 0.1]) == (0.1, 0.9)
    assert interval([0.1]) is None
    assert interval([0.1, float("nan")]) is None
    assert interval("ab") is None


@given(st.dictionaries(st.sampled_from(["table", "seed"]), anything))
def test_any_result_gives_metrics_or_none(result: dict[str, Any]) -> None:
    assert all(metric.name for metric in metrics_of(result))


def step(phase: str, at: int, loss: float) -> StepDone:
    return StepDone(
        phase=phase, step=at, total_steps=3, loss=loss, grad_norm=1, learning_rate=0.1, tokens=10, seconds=1
    )


def test_what_a_rollback_undid_is_left_out(unfinished_dir: Path, write_events: Callable[..., None]) -> None:
    write_events(
        unfinished_dir,
        [
            RunStarted(run="r", attempt=1, phases=["P0", "P1", "P2"]),
            PhaseStarted(phase="P0", title="base"),
            PhaseDone(phase="P0", checkpoint="P0-0001", seconds=1, metrics={}),
            PhaseStarted(phase="P1", title="adapt"),
            step("P1", 1, 9.0),
            PhaseDone(phase="P1", checkpoint="P1-0001", seconds=1, metrics={"perplexity": 9.0}),
            RolledBack(phase="P0", checkpoint="P0-0001", seconds=0.1),
            RunEnded(status="paused", reason="rolled back by a person"),
        ],
    )
    record = load_record(unfinished_dir)
    assert [(phase.name, phase.checkpoint) for phase in record.phases] == [("P0", "P0-0001")]
    assert (record.status, record.status_reason) == ("paused", "rolled back by a person")


def test_result_rows_complete_what_the_events_say(run_dir: Path) -> None:
    phases = {phase.name: phase for phase in load_record(run_dir).phases}
    assert list(phases) == ["P0", "P1", "P2", "P3", "P4"]
    assert (phases["P2"].steps, phases["P2"].passed, phases["P2"].context) == (0, True, 256)
    assert (phases["P1"].steps, phases["P1"].checkpoint) == (40, "P1-0001")


def test_torn_and_corrupt_lines_are_counted_and_skipped(run_dir: Path) -> None:
    whole = len(load_record(run_dir).events)
    with (run_dir / "events.jsonl").open("ab") as file:
        file.write(b'not json\n{"type":"unknown"}\n{"type":"note","te')
    record = load_record(run_dir)
    assert len(record.events) == whole
    assert record.skipped_lines == 2
    assert "2 damaged line(s) of events.jsonl were skipped" in record.missing


def test_a_status_is_the_streams_last_word(run_dir: Path) -> None:
    with (run_dir / "events.jsonl").open("ab") as file:
        file.write(RunStarted(run="r", attempt=2, phases=["P0"]).model_dump_json().encode() + b"\n")
    assert load_record(run_dir).status == "unfinished"
    result = json.loads((run_dir / "result.json").read_text())
    (run_dir / "events.jsonl").unlink()
    assert load_record(run_dir).status == result["status"]
