"""The event stream as a list of sentences with times; runs of steps become one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from scaler_wizard.report.values import number, text
from scaler_wizard.report.words import NONE, amount, duration, moment, plural, share, value_with_interval
from scaler_wizard.specs.events import Event, StepDone

MAX_ENTRIES = 600
QUICK_LOOK = "quick_look"


@dataclass(frozen=True)
class Entry:
    """One line; `mark` is `good`, `bad`, `ask` or ""."""

    time: str
    moment: str
    phase: str
    sentence: str
    mark: str = ""


def timeline(events: Sequence[Event]) -> tuple[list[Entry], int]:
    """(entries, how many were left out): the first and the last ones where there are too many."""
    entries = list(_entries(events))
    if len(entries) <= MAX_ENTRIES:
        return entries, 0
    half = MAX_ENTRIES // 2
    return entries[:half] + entries[-half:], len(entries) - MAX_ENTRIES


def _entries(events: Sequence[Event]) -> Iterator[Entry]:
    told = (event for event in events if event.type != "progress" and not _is_look(event))
    for (kind, phase), group in groupby(
        told, key=lambda event: (event.type, text(getattr(event, "phase", ""), 40))
    ):
        members = list(group)
        if kind == "step":
            yield _steps(phase, [event for event in members if isinstance(event, StepDone)])
            continue
        for event in members:
            sentence, mark = _sentence(event)
            yield Entry(_clock(event.time), moment(event.time), phase, text(sentence, 600), mark)


def _is_look(event: Event) -> bool:
    """Questions asked every few steps: too many to tell one by one."""
    return event.type == "probe" and event.probe == QUICK_LOOK


def _steps(phase: str, steps: list[StepDone]) -> Entry:
    first, last = steps[0], steps[-1]
    sentence = (
        f"{plural(len(steps), 'step')} ({first.step} to {last.step} of {last.total_steps}), "
        f"loss {share(first.loss)} to {share(last.loss)}"
    )
    return Entry(_clock(first.time), moment(first.time), phase, sentence)


def _sentence(event: Event) -> tuple[str, str]:
    match event.type:
        case "run_started":
            again = f", attempt {event.attempt}" if event.attempt > 1 else ""
            at = f", resumed at {event.resumed_at}" if event.resumed_at else ""
            return f"Worker started{again}{at}; phases {', '.join(event.phases)}", ""
        case "note":
            return event.text, ""
        case "phase_started":
            return f"Started: {event.title}", ""
        case "probe":
            return f"Measured {event.probe}: {_measured(event.result)}", ""
        case "telegram":
            return f"Circuit breaker, {event.action} at step {event.step}: {event.reason}", "bad"
        case "phase_done":
            return f"Committed {event.checkpoint} after {duration(event.seconds)}", "good"
        case "gate_opened":
            return f"Gate {event.gate}: {event.sentence}", "ask"
        case "gate_closed":
            target = f" to {event.target_phase}" if event.target_phase else ""
            reason = f" ({event.reason})" if event.reason else ""
            return f"Gate {event.gate} answered: {event.action}{target}, by {event.by}{reason}", "good"
        case "rolled_back":
            return (
                f"Rolled back to {event.phase}, checkpoint {event.checkpoint}, in {duration(event.seconds)}",
                "bad",
            )
        case "run_ended":
            reason = f": {event.reason}" if event.reason else ""
            return f"Run {event.status}{reason}", "good" if event.status == "completed" else "bad"
        case _:
            return event.type, ""


def _measured(result: Mapping[str, Any]) -> str:
    value = number(result.get("value"))
    if value is None:
        return ", ".join(f"{text(key, 40)} {amount(found)}" for key, found in _numbers(result)) or "recorded"
    ends = result.get("ci95")
    ci = None
    if isinstance(ends, list) and len(ends) == 2:
        low, high = number(ends[0]), number(ends[1])
        ci = (low, high) if low is not None and high is not None else None
    n = number(result.get("n"))
    return value_with_interval(value, ci) + (f", n {n:.0f}" if n is not None else "")


def _numbers(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    found = [(key, number(value)) for key, value in result.items()]
    return [(key, value) for key, value in found if value is not None][:4]


def _clock(unix: float) -> str:
    if not 0 < unix < 253402300800:
        return NONE
    return datetime.fromtimestamp(unix, UTC).strftime("%H:%M:%S")
