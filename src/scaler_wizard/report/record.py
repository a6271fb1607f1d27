"""A run directory as typed, harmless values: what the report, its tables and its plots are made from.

Everything here comes from files that someone may have edited, cut or never finished. A value of the wrong
kind counts as absent; what is absent or damaged is named in `Record.missing`. Knows the shapes of
result.json and of the events; does not know how anything is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaler_wizard.errors import RunError, RunNotFoundError
from scaler_wizard.report.values import Interval, interval, items, mapping, number, text, whole
from scaler_wizard.specs.events import Event
from scaler_wizard.store.rundir import RunDir

GROW_SECTIONS = {
    "nll_by_position": "the loss by position",
    "needle": "the needle probe",
    "candidates": "the RoPE candidates",
    "samples": "generated samples",
}
RESULT_SECTIONS = {
    "memory": "predicted and measured memory",
    "export": "the export",
}
TABLE_SECTION = {"table": "the comparison of before and after"}


@dataclass(frozen=True)
class Metric:
    """One row of the before/after table."""

    name: str
    unit: str
    before: float | None
    before_ci: Interval | None
    after: float | None
    after_ci: Interval | None
    n: int | None
    baseline: float | None
    baseline_name: str
    better: str
    """`higher`, `lower`, or "" where neither is."""
    note: str


@dataclass(frozen=True)
class Phase:
    """One phase, finished or not; `passed` is its gate's verdict, None before there is one."""

    name: str
    title: str
    context: int | None = None
    steps: int | None = None
    seconds: float | None = None
    passed: bool | None = None
    rope_method: str = ""
    checkpoint: str = ""
    reasons: tuple[str, ...] = ()
    perplexity: float | None = None
    perplexity_ci: Interval | None = None
    accuracy: float | None = None
    accuracy_ci: Interval | None = None


@dataclass(frozen=True)
class Point:
    """A measured mean at x (token position, or relative depth), with its 95% interval."""

    x: float
    value: float
    ci: Interval | None
    n: int | None


@dataclass(frozen=True)
class Candidate:
    """One RoPE method scored untrained: NLL difference to the base window in nats per token, +- 1 se."""

    method: str
    nll_difference: float | None
    se: float | None
    needle: float | None
    passed: bool | None
    chosen: bool


@dataclass(frozen=True)
class Record:
    """Everything the report needs of one run."""

    path: Path
    id: str
    uuid: str
    created: float | None
    result: Mapping[str, Any]
    job: Mapping[str, Any]
    plan: Mapping[str, Any]
    events: tuple[Event, ...]
    skipped_lines: int
    status: str
    status_reason: str
    status_advice: str
    phases: tuple[Phase, ...]
    missing: tuple[str, ...]
    """Sentences without a full stop: what is not there, or could not be read."""
    metrics: tuple[Metric, ...] = ()
    nll: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    """`before` and `after` to points by position."""
    needle: Mapping[str, Mapping[int, tuple[Point, ...]]] = field(default_factory=dict)
    """`before`, `after`, `truncated` to context length to points by depth."""
    needle_chance: float | None = None
    candidates: Mapping[str, tuple[Candidate, ...]] = field(default_factory=dict)


def load_record(run_dir: Path) -> Record:
    """Read a run directory, finished or not.

    Raises:
        RunNotFoundError: `run_dir` is not a directory.
    """
    if not run_dir.is_dir():
        raise RunNotFoundError(
            f"{run_dir} is not a run directory", "a folder with a run.json", "see `scaler runs`"
        )
    run = RunDir(run_dir)
    missing: list[str] = []
    result = _read(run.result, "result.json", missing)
    job = _read(run.job, "job.json", missing)
    plan = _read(run.plan, "plan.json", missing)
    try:
        identity = run.identity()
        run_id, uuid, created = identity.id, identity.uuid, number(identity.created)
    except RunError as error:
        missing.append(error.found)
        run_id, uuid, created = run_dir.resolve().name, "", None
    reader = run.read_events()
    try:
        events = tuple(reader)
    except OSError as error:
        events = ()
        missing.append(f"events.jsonl cannot be read ({error.strerror})")
    if not events:
        missing.append("events.jsonl holds no event")
    if reader.skipped:
        missing.append(f"{reader.skipped} damaged line(s) of events.jsonl were skipped")
    if result:
        missing += [
            f"result.json says nothing about {what}"
            for key, what in _sections(result.get("recipe")).items()
            if not result.get(key)
        ]
    status, reason, advice = _status(events, result)
    return Record(
        path=run_dir, id=run_id, uuid=uuid, created=created, result=result, job=job, plan=plan, events=events,
        skipped_lines=reader.skipped, status=status, status_reason=reason, status_advice=advice,
        phases=_phases(result, events), missing=tuple(missing), metrics=metrics_of(result), nll=_nll(result),
        needle=_needle(result), needle_chance=number(mapping(result.get("needle")).get("chance")),
        candidates=_candidates(result),
    )  # fmt: skip


def _sections(recipe: object) -> dict[str, str]:
    """What the result of a recipe should hold: a merge changes nothing, so that nothing is compared."""
    if recipe == "consolidate":
        return RESULT_SECTIONS
    stages = {"stages": "the stages", "base": "what the base can do", "cost": "its cost"}
    own = {"continual": {}, "bootstrap": stages}.get(text(recipe), GROW_SECTIONS)
    return RESULT_SECTIONS | TABLE_SECTION | own


def metrics_of(result: Mapping[str, Any]) -> tuple[Metric, ...]:
    """The rows of `result["table"]` that have a name."""
    rows = []
    for row in map(mapping, items(result.get("table"))):
        if name := text(row.get("metric"), 120):
            better = text(row.get("better"))
            rows.append(
                Metric(
                    name, text(row.get("unit"), 20), number(row.get("before")),
                    interval(row.get("before_ci")),
                    number(row.get("after")), interval(row.get("after_ci")), whole(row.get("n")),
                    number(row.get("baseline")), text(row.get("baseline_name"), 120),
                    better if better in ("higher", "lower") else "", text(row.get("note"), 300),
                )
            )  # fmt: skip
    return tuple(rows)


def _read(read: Callable[[], dict[str, Any] | None], name: str, missing: list[str]) -> dict[str, Any]:
    try:
        value = read()
    except RunError as error:
        missing.append(error.found)
        return {}
    if value is None:
        end = (
            ": the run has not reached its end, so there is no comparison of before and after"
            if name == "result.json"
            else ""
        )
        missing.append(f"{name} is not there{end}")
    return value or {}


def _status(events: tuple[Event, ...], result: Mapping[str, Any]) -> tuple[str, str, str]:
    """(status, reason, advice): the stream's last word, since a result may be older than a resume."""
    for event in reversed(events):
        if event.type == "run_ended":
            return event.status, text(event.reason), text(event.advice)
        if event.type == "gate_opened":
            return (
                "waiting",
                text(event.sentence),
                "answer with `scaler approve`, `scaler abort` or `scaler rollback`",
            )
        if event.type != "note":
            return "unfinished", "the worker has not reported an end; it is running, or was killed", ""
    return text(result.get("status"), 20) or "unknown", "", ""


def _phases(result: Mapping[str, Any], events: tuple[Event, ...]) -> tuple[Phase, ...]:
    """Phases in their order: the result's where it has them, completed by what the events say."""
    steps: dict[str, int] = {}
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.type == "rolled_back" and event.phase in found:
            for undone in list(found)[list(found).index(event.phase) + 1 :]:
                del found[undone]
                steps.pop(undone, None)
        if event.type == "phase_started":
            found.setdefault(text(event.phase, 40), {"title": event.title})
        elif event.type == "step":
            steps[text(event.phase, 40)] = event.step
        elif event.type == "phase_done":
            done = {"checkpoint": event.checkpoint, "seconds": event.seconds}
            found.setdefault(text(event.phase, 40), {}).update(event.metrics | done)
    for row in map(mapping, items(result.get("phases"))):
        if name := text(row.get("phase"), 40):
            found[name] = found.get(name, {}) | {
                key: value for key, value in row.items() if value is not None
            }
    return tuple(_phase(name, row, steps.get(name)) for name, row in found.items())


def _phase(name: str, row: Mapping[str, Any], steps: int | None) -> Phase:
    counted = whole(row.get("steps"))
    passed = row.get("passed")
    return Phase(
        name=name, title=text(row.get("title"), 120), context=whole(row.get("context")),
        steps=steps if counted is None else counted, seconds=number(row.get("seconds")),
        passed=passed if isinstance(passed, bool) else None, rope_method=text(row.get("rope_method"), 40),
        checkpoint=text(row.get("checkpoint"), 80),
        reasons=tuple(text(reason, 400) for reason in items(row.get("reasons")) if text(reason)),
        perplexity=number(row.get("perplexity")), perplexity_ci=interval(row.get("perplexity_ci")),
        accuracy=number(row.get("accuracy")), accuracy_ci=interval(row.get("accuracy_ci")),
    )  # fmt: skip


def _nll(result: Mapping[str, Any]) -> dict[str, tuple[Point, ...]]:
    curves = mapping(result.get("nll_by_position"))
    return {key: points for key in ("before", "after") if (points := _curve(curves.get(key)))}


def _curve(rows: object) -> tuple[Point, ...]:
    points = [
        Point(x, value, interval([row.get("low"), row.get("high")]), whole(row.get("n")))
        for row in map(mapping, items(rows))
        if (x := number(row.get("position"))) is not None and (value := number(row.get("nll"))) is not None
    ]
    return tuple(sorted(points, key=lambda point: point.x))


def _needle(result: Mapping[str, Any]) -> dict[str, dict[int, tuple[Point, ...]]]:
    needle = mapping(result.get("needle"))
    series: dict[str, dict[int, tuple[Point, ...]]] = {}
    for key in ("before", "truncated", "after"):
        lengths = {
            length: points
            for name, depths in mapping(needle.get(key)).items()
            if (length := whole(_parsed(name))) is not None and (points := _depths(depths))
        }
        if lengths:
            series[key] = dict(sorted(lengths.items()))
    return series


def _depths(depths: object) -> tuple[Point, ...]:
    points = [
        Point(depth, value, interval([cell.get("low"), cell.get("high")]), whole(cell.get("n")))
        for name, cell in ((name, mapping(cell)) for name, cell in mapping(depths).items())
        if (depth := _parsed(name)) is not None and (value := number(cell.get("value"))) is not None
    ]
    return tuple(sorted(points, key=lambda point: point.x))


def _parsed(name: object) -> float | None:
    """A JSON key that is a number."""
    try:
        return number(float(text(name, 30)))
    except ValueError:
        return None


def _candidates(result: Mapping[str, Any]) -> dict[str, tuple[Candidate, ...]]:
    found = {}
    for phase, rows in mapping(result.get("candidates")).items():
        methods = tuple(
            Candidate(
                method, number(row.get("nll_difference")), number(row.get("se")), number(row.get("needle")),
                row["passed"] if isinstance(row.get("passed"), bool) else None, row.get("chosen") is True,
            )
            for row in map(mapping, items(rows))
            if (method := text(row.get("method"), 40))
        )  # fmt: skip
        if methods:
            found[text(phase, 40)] = methods
    return found
