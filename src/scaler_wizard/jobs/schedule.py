"""What happens next to queued, running and ended jobs: one pure decision from one frozen snapshot.

`decide` starts, kills, queues again and gives up; it reads no clock, no file and no database. The host makes
the snapshot and carries the decision out (`dispatch`). Wall-clock time serves only for `not_before`; whether
a worker is alive or hung is told by locks and by the monotonic clock, so that a wall clock a day off expires
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scaler_wizard.jobs.disk import DiskVerdict
from scaler_wizard.jobs.watchdog import Activity, Kill, Limits, look_at
from scaler_wizard.store.queue import PRIORITIES
from scaler_wizard.store.records import Attempt

DISK_FULL = "disk_full"
RETRY_DELAY_SEC = 5.0
DISK_DELAY_SEC = 60.0

# How an attempt ended that left no word of its own:
INTERRUPTED = "interrupted"  # having committed nothing
ADVANCED = "advanced"  # after at least one checkpoint
REBOOTED = "rebooted"  # with the whole machine
GAVE_UP = "gave_up"  # and the run was not tried again


@dataclass(frozen=True)
class Rules:
    """How often something is tried again; see `specs.continual.QueueSection`."""

    retries: int = 0
    restarts: int = 0
    restart_window_sec: float = 300.0


@dataclass(frozen=True)
class QueuedRun:
    """A run that waits."""

    id: str
    recipe: str
    priority: int
    created: float
    device: str
    lineage: str | None = None
    not_before: float = 0.0


@dataclass(frozen=True)
class LiveWorker:
    """A worker that is alive, and the last sign of progress it gave."""

    run: str
    device: str
    activity: Activity
    silent_sec: float
    """Seconds on the monotonic clock since its last sign of progress."""
    lineage: str | None = None
    resident_bytes: int = 0
    memory_limit: int | None = None
    """Bytes its processes may hold in memory; None where nothing is to be watched."""
    being_killed: bool = False


@dataclass(frozen=True)
class EndedWorker:
    """A worker that has ended, and what its run went through."""

    run: str
    status: Literal["completed", "paused", "stopped", "failed"]
    clean: bool
    """False where it left no word of its own: it was killed or it crashed."""
    cause: str = ""
    """Kind of crash, see `crash.classify`."""
    reason: str = ""
    advice: str = ""
    retries: int = 0
    """Times the run was tried again after it had failed by its own word."""
    crashes: int = 0
    """Deaths without a word, this one too: those within the restart window, and all since its last commit."""
    lineage: str | None = None
    rolled_back: bool = False
    """A person, or the breaker for them, chose a rollback: they decide what is next."""


@dataclass(frozen=True)
class Snapshot:
    """Everything `decide` looks at."""

    queued: tuple[QueuedRun, ...] = ()
    workers: tuple[LiveWorker, ...] = ()
    ended: tuple[EndedWorker, ...] = ()
    paused_lineages: frozenset[str] = frozenset()
    """Lineages of which a run is paused: another file would continue from a model without it."""
    busy_devices: frozenset[str] = frozenset()
    """Devices whose lock somebody holds, whether we know them or not."""
    blocked: Mapping[str, str] = field(default_factory=dict)
    """Why no job of a recipe may start now (a stale signature), by recipe."""
    held: str | None = None
    """Why nothing at all is started, where a person asked for that."""
    disk: DiskVerdict = "ok"
    rules: Rules = field(default_factory=Rules)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Requeue:
    """Put it back into the queue."""

    run: str
    why: str
    advice: str
    not_before: float
    priority: int | None = None
    retries: int | None = None


@dataclass(frozen=True)
class Fail:
    """Give it up, with the evidence."""

    run: str
    reason: str
    advice: str


@dataclass(frozen=True)
class Decision:
    """What is to be done now."""

    start: tuple[str, ...] = ()
    requeue: tuple[Requeue, ...] = ()
    fail: tuple[Fail, ...] = ()
    kill: tuple[Kill, ...] = ()
    waiting: tuple[tuple[str, str], ...] = ()
    """(run, why it does not start now), in the order of the queue."""


def decide(snapshot: Snapshot, now: float) -> Decision:
    """The decision for a snapshot at `now` (Unix seconds).

    What has ended is settled, and what waited for its device may start in the same look; of its lineage only
    when it completed, because whether it ended paused is known when it is written down.
    """
    settled = [settle(ended, snapshot.rules, now) for ended in snapshot.ended]
    kills = [
        look_at(
            worker.run, worker.activity, worker.silent_sec, snapshot.limits, worker.resident_bytes,
            worker.memory_limit,
        )
        for worker in snapshot.workers
        if not worker.being_killed
    ]  # fmt: skip
    start, waiting = _starts(snapshot, now)
    return Decision(
        start=start,
        requeue=tuple(item for item in settled if isinstance(item, Requeue)),
        fail=tuple(item for item in settled if isinstance(item, Fail)),
        kill=tuple(kill for kill in kills if kill is not None),
        waiting=waiting,
    )


def settle(ended: EndedWorker, rules: Rules, now: float) -> Requeue | Fail | None:
    """What becomes of a run whose worker ended; None where the worker's own word stands.

    A death without a word is a restart: at once, at its own priority, at most `restarts` times within the
    window or since the last commit. A failure by its own word is a retry, behind everything else. A full disk
    is neither the job's fault nor its end: it waits for space.
    """
    if ended.cause == DISK_FULL and ended.status in ("paused", "failed") and rules.restarts > 0:
        if ended.crashes <= rules.restarts:
            return Requeue(ended.run, ended.reason, ended.advice, now + DISK_DELAY_SEC)
        return None if ended.status == "paused" else Fail(ended.run, ended.reason, ended.advice)
    if ended.status != "failed":
        return None
    if not ended.clean:
        if ended.crashes <= rules.restarts:
            return Requeue(ended.run, ended.reason, ended.advice, not_before=0.0)
        return Fail(ended.run, _too_often(ended, rules), ended.advice)
    if ended.rolled_back or ended.retries >= rules.retries:
        return Fail(ended.run, ended.reason, ended.advice)
    return Requeue(
        ended.run, ended.reason, ended.advice, now + RETRY_DELAY_SEC * 2**ended.retries,
        priority=PRIORITIES["low"], retries=ended.retries + 1,
    )  # fmt: skip


def count_crashes(earlier: Sequence[Attempt], boot_id: str, monotonic: float, window_sec: float) -> int:
    """Deaths without a word that count against a run: within the window, or since its last commit.

    Args:
        earlier: the run's ended attempts, newest first.
        boot_id, monotonic: of now. A death of an earlier boot may have been a power cut: it does not count.
    """
    count, since_commit = 0, True
    for attempt in earlier:
        if attempt.outcome == GAVE_UP:
            break  # a person has resumed it since
        if attempt.outcome not in (INTERRUPTED, ADVANCED):
            since_commit = False
        elif attempt.boot_id == boot_id:
            ended = attempt.heartbeat_monotonic
            recent = ended is not None and monotonic - ended <= window_sec
            since_commit = since_commit and attempt.outcome == INTERRUPTED
            count += recent or since_commit
    return count


def _too_often(ended: EndedWorker, rules: Rules) -> str:
    if rules.restarts == 0:
        return ended.reason
    return (
        f"its worker died {ended.crashes} times (within {rules.restart_window_sec:g} s, or without a new "
        f"checkpoint); the last time: {ended.reason}"
    )


def _starts(snapshot: Snapshot, now: float) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """(runs to start, why the others wait): by priority, then age; one worker a device and a lineage."""
    devices = {worker.device for worker in snapshot.workers} | snapshot.busy_devices
    active = {worker.lineage for worker in snapshot.workers if worker.lineage}
    active |= {ended.lineage for ended in snapshot.ended if ended.lineage and ended.status != "completed"}
    start: list[str] = []
    waiting: list[tuple[str, str]] = []
    for run in sorted(snapshot.queued, key=lambda run: (-run.priority, run.created, run.id)):
        why = _why_not(run, snapshot, now, devices, active)
        if why is not None:
            waiting.append((run.id, why))
            continue
        start.append(run.id)
        devices.add(run.device)
        if run.lineage:
            active.add(run.lineage)
    return tuple(start), tuple(waiting)


def _why_not(
    run: QueuedRun, snapshot: Snapshot, now: float, devices: set[str], active: set[str]
) -> str | None:
    if snapshot.held is not None:
        return snapshot.held
    if snapshot.disk == "refuse":
        return "too little free disk space"
    if run.recipe in snapshot.blocked:
        return snapshot.blocked[run.recipe]
    if run.not_before > now:
        return f"tried again in {run.not_before - now:.0f} s"
    if run.lineage in snapshot.paused_lineages:
        return f"a run of {run.lineage} is paused: resume or skip it"
    if run.lineage in active:
        return f"a run of {run.lineage} is at work"
    if run.device in devices:
        return f"{run.device} is in use"
    return None
