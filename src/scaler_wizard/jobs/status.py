"""How the workspace stands: a pure fold over rows and a run's newest events. Reads no file and no clock.

The same picture is shown by `scaler status`, written to status.json by the daemon, and answered to any
program that asks the host for `status`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from scaler_wizard.jobs.disk import GB, disk_verdict
from scaler_wizard.specs.continual import DiskSection
from scaler_wizard.specs.events import Event
from scaler_wizard.store.inbox_files import InboxFile
from scaler_wizard.store.records import Gate, Run, Version
from scaler_wizard.store.states import ACTIVE, RunStatus

Gap = Literal["good", "watch", "overfit"]
GAP_WATCH, GAP_OVERFIT = 0.3, 0.5
"""Nats of validation loss above training loss: below the first is good, above the second overfit."""
RATE_STEPS = 20
"""Steps over which loss and tokens per second are averaged."""
NEXT_FILES = 5
EXAMPLES = 3
RECENT = 10


@dataclass(frozen=True)
class DaemonState:
    """The daemon as it knows itself."""

    pid: int
    started: float
    """Unix time in seconds."""
    paused: str | None = None
    """Why the queue is paused; None when it is not."""
    waiting_files: Mapping[str, str] = field(default_factory=dict)
    """Files of the inbox that cannot be taken now -> why."""
    problems: tuple[str, ...] = ()
    """What keeps the daemon from starting jobs: a stale signature, a config that cannot be read."""


@dataclass(frozen=True)
class Snapshot:
    """What the fold is made of."""

    now: float
    """Unix time in seconds."""
    workspace: str
    runs: Sequence[Run]
    """The unfinished ones and those that finished recently, in any order."""
    gates: Sequence[Gate] = ()
    """Open ones."""
    versions: Sequence[Version] = ()
    """Newest first."""
    inbox: Sequence[InboxFile] = ()
    """What was seen lately, newest first."""
    events: Iterable[Event] = ()
    """The newest events of the run that is at work, oldest first."""
    alive: frozenset[str] = frozenset()
    """Runs whose worker process lives."""
    free_bytes: int | None = None
    disk: DiskSection = field(default_factory=DiskSection)
    daemon: DaemonState | None = None


@dataclass(frozen=True)
class Course:
    """How the run at work is doing."""

    phase: str = "-"
    activity: str = ""
    done: int = 0
    total: int = 0
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    """Mean of the last steps, nats per token."""
    validation_loss: float | None = None
    gap: float | None = None
    """Validation loss minus training loss, nats per token."""
    gap_class: Gap | None = None
    accuracy_20: float | None = None
    """Share of the last 20 checked answers that were right."""
    accuracy_50: float | None = None
    tokens_per_sec: float | None = None
    memory_bytes: int = 0
    eta_sec: float | None = None
    """Seconds from now to the end of the phase."""
    examples: tuple[Mapping[str, Any], ...] = ()
    """The last checked answers: question, expected, answer, right."""


def gap_class(gap: float) -> Gap:
    """What a train/validation gap (nats per token) says."""
    if gap < GAP_WATCH:
        return "good"
    return "watch" if gap <= GAP_OVERFIT else "overfit"


def fold_course(events: Iterable[Event], now: float) -> Course:
    """The run's newest numbers.

    Args:
        events: of one run, oldest first; the beginning may be missing.
        now: Unix seconds, to count the remaining time down from the event that told it.
    """
    phase, activity, done, total, step, total_steps = "-", "", 0, 0, 0, 0
    losses: list[float] = []
    rates: list[tuple[int, float]] = []
    answers: list[Mapping[str, Any]] = []
    memory, eta, validation = 0, None, None
    for event in events:
        match event.type:
            case "run_started":
                losses, rates, answers, eta, validation = [], [], [], None, None
            case "phase_started":
                phase, activity, done, total, eta = event.phase, "", 0, 0, None
            case "progress":
                phase, activity, done, total = event.phase, event.activity, event.done, event.total
                memory = event.memory_bytes or memory
                eta = None if event.eta_sec is None else event.time + event.eta_sec
            case "step":
                phase, activity, step, total_steps = event.phase, "training", event.step, event.total_steps
                done, total = event.step, event.total_steps
                losses.append(event.loss)
                rates.append((event.tokens, event.seconds))
                memory = event.memory_bytes or memory
                eta = None if event.eta_sec is None else event.time + event.eta_sec
            case "probe":
                validation = _number(event.result.get("validation_loss"), validation)
                answers += _answers(event.result)
            case "phase_done":
                validation = _number(event.metrics.get("validation_loss"), validation)
                eta = None
            case _:
                pass
    loss = statistics.fmean(losses[-RATE_STEPS:]) if losses else None
    gap = validation - loss if validation is not None and loss is not None else None
    seconds = sum(second for _, second in rates[-RATE_STEPS:])
    return Course(
        phase, activity, done, total, step, total_steps, loss, validation, gap,
        None if gap is None else gap_class(gap), _accuracy(answers, 20), _accuracy(answers, 50),
        sum(tokens for tokens, _ in rates[-RATE_STEPS:]) / seconds if seconds > 0 else None,
        memory, None if eta is None else max(0.0, eta - now), tuple(answers[-EXAMPLES:]),
    )  # fmt: skip


def fold(snapshot: Snapshot) -> dict[str, Any]:
    """The whole picture, JSON-ready: daemon, queue, current, recent, versions, inbox, alerts."""
    queued = sorted(
        (run for run in snapshot.runs if run.status == RunStatus.QUEUED),
        key=lambda run: (-run.priority, run.created, run.id),
    )
    current = current_run(snapshot.runs)
    return {
        "time": snapshot.now,
        "workspace": snapshot.workspace,
        "daemon": _daemon(snapshot),
        "queue": {
            "counts": _counts(snapshot),
            "next": [_queued(run, snapshot.now) for run in queued[:NEXT_FILES]],
            "paused_runs": [file_of(run) for run in snapshot.runs if run.status == RunStatus.PAUSED],
        },
        "current": None if current is None else _current(current, snapshot),
        "recent": [_recent(run) for run in _finished(snapshot.runs)[:RECENT]],
        "versions": [_version(version) for version in snapshot.versions[:RECENT]],
        "inbox": [asdict(file) for file in snapshot.inbox[:RECENT]],
        "alerts": alerts(snapshot),
        "disk_free_gb": None if snapshot.free_bytes is None else round(snapshot.free_bytes / GB, 2),
    }


def run_states(status: Mapping[str, Any]) -> dict[str, str]:
    """What a person calls each run of a status -> the state it is shown in."""
    states = {one["shown"]: one["status"] for one in status["recent"]}
    states |= {one["shown"]: "queued" for one in status["queue"]["next"]}
    states |= dict.fromkeys(status["queue"]["paused_runs"], "paused")
    current = status["current"]
    return states | ({} if current is None else {current["shown"]: current["status"]})


def changes(before: Mapping[str, str] | None, now: Mapping[str, str]) -> list[tuple[str, str]]:
    """(run, state) of each run whose state is another one than before; none at the first look."""
    if before is None:
        return []
    return [(run, state) for run, state in now.items() if before.get(run) != state]


def current_run(runs: Iterable[Run]) -> Run | None:
    """The run at work: the active one that changed last."""
    return max((run for run in runs if run.status in ACTIVE), key=lambda run: run.updated, default=None)


def file_of(run: Run) -> str:
    """What a person calls the run: the name of its file in the inbox, else its id."""
    file = run.job.get("file")
    name = file.get("name") if isinstance(file, Mapping) else None
    return f"{run.id} ({name})" if isinstance(name, str) else run.id


def alerts(snapshot: Snapshot) -> list[dict[str, str]]:
    """What a person should know now, the worst first: {severity: critical or warn, text}."""
    critical, warn = [], []
    if snapshot.daemon is not None:
        critical += list(snapshot.daemon.problems)
        warn += [f"{name} waits in the inbox: {why}" for name, why in snapshot.daemon.waiting_files.items()]
        if snapshot.daemon.paused is not None:
            warn.append(
                "the queue is paused" + (f": {snapshot.daemon.paused}" if snapshot.daemon.paused else "")
            )
    if snapshot.free_bytes is not None:
        free, section = f"{snapshot.free_bytes / GB:.1f} GB are free", snapshot.disk
        verdict = disk_verdict(snapshot.free_bytes, section)
        if verdict == "refuse":
            critical.append(f"{free}; no job starts below {section.refuse_below_gb:g} GB")
        elif verdict == "warn":
            warn.append(f"{free}; below {section.warn_below_gb:g} GB you are told")
    warn += [f"run {gate.run_id} waits for you: {gate.sentence}" for gate in snapshot.gates]
    for run in snapshot.runs:
        if run.status == RunStatus.FAILED:
            advice = f"; {run.advice}" if run.advice else ""
            critical.append(f"{file_of(run)} failed: {run.error or 'no reason was left'}{advice}")
        elif run.status in ACTIVE and run.id not in snapshot.alive:
            warn.append(f"{file_of(run)} was cut off; it goes on when the daemon starts")
    texts = [("critical", text) for text in critical] + [("warn", text) for text in warn]
    return [{"severity": severity, "text": text} for severity, text in texts]


def _daemon(snapshot: Snapshot) -> dict[str, Any] | None:
    daemon = snapshot.daemon
    if daemon is None:
        return None
    return {
        "pid": daemon.pid, "started": daemon.started, "uptime_sec": max(0.0, snapshot.now - daemon.started),
        "paused": daemon.paused is not None, "paused_reason": daemon.paused or "",
        "waiting_files": dict(daemon.waiting_files),
    }  # fmt: skip


def _counts(snapshot: Snapshot) -> dict[str, int]:
    counts = {str(status): 0 for status in RunStatus}
    for run in snapshot.runs:
        counts[run.status] += 1
    return counts


def _current(run: Run, snapshot: Snapshot) -> dict[str, Any]:
    course = fold_course(snapshot.events, snapshot.now)
    status = str(run.status) if run.id in snapshot.alive else "interrupted"
    return {"run": run.id, "shown": file_of(run), "recipe": run.recipe, "status": status, **asdict(course)}


def _queued(run: Run, now: float) -> dict[str, Any]:
    return {
        "run": run.id, "shown": file_of(run), "priority": run.priority, "retries": run.retries,
        "waits_sec": max(0.0, run.not_before - now),
    }  # fmt: skip


def _finished(runs: Iterable[Run]) -> list[Run]:
    over = (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.STOPPED, RunStatus.SKIPPED)
    return sorted((run for run in runs if run.status in over), key=lambda run: -run.updated)


def _recent(run: Run) -> dict[str, Any]:
    return {
        "run": run.id, "shown": file_of(run), "status": str(run.status), "ended": run.updated,
        "error": run.error, "advice": run.advice,
    }  # fmt: skip


def _version(version: Version) -> dict[str, Any]:
    return {
        "lineage": version.lineage, "version": f"v{version.number:03d}", "status": version.status,
        "run": version.run_id, "description": version.description, "created": version.created,
    }  # fmt: skip


def _number(value: object, default: float | None) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def _answers(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Checked answers that a probe's record carries: [{question, expected, answer, right}]."""
    answers = result.get("answers")
    if not isinstance(answers, list):
        return []
    return [one for one in answers if isinstance(one, Mapping) and isinstance(one.get("right"), bool)]


def _accuracy(answers: Sequence[Mapping[str, Any]], last: int) -> float | None:
    some = answers[-last:]
    return sum(bool(one["right"]) for one in some) / len(some) if some else None
