"""The queue: which runs wait, in which order, and what a person may change about it. See `queries`.

A queue is not a table of its own: it is the runs in state `queued`, by priority, then age. Retrying puts a
run back with what it has; taking one out (`skip`, `clear`) deletes nothing.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, bindparam, func, select, update

from scaler_wizard.errors import WrongStateError
from scaler_wizard.store.attempts import claim
from scaler_wizard.store.database import transaction
from scaler_wizard.store.queries import create_run
from scaler_wizard.store.records import Attempt, Host, NewRun, Run
from scaler_wizard.store.rows import log, move, run_row, to_run
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.tables import RUNS

PRIORITIES = {"high": 10, "normal": 0, "low": -10}
DAY_SEC = 86_400.0
LEFT = (RunStatus.FAILED, RunStatus.STOPPED, RunStatus.SKIPPED)

_QUEUED = (
    select(RUNS)
    .where(RUNS.c.status == RunStatus.QUEUED)
    .order_by(RUNS.c.priority.desc(), RUNS.c.created, RUNS.c.id)
)
_DUE = (RUNS.c.status == RunStatus.QUEUED) & (RUNS.c.not_before <= bindparam("now"))
_HIGHEST = select(func.max(RUNS.c.priority)).where(_DUE).scalar_subquery()
# The highest priority first, then the oldest of it: both read the index from one end, whereas "by priority
# downward, then age upward" sorts the whole queue for each claim.
_FIRST = (
    select(RUNS)
    .where(_DUE, RUNS.c.priority == _HIGHEST)
    .order_by(RUNS.c.created, RUNS.c.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)


def priority_word(priority: int) -> str:
    """The word of a priority, or the number where it has none."""
    return next((word for word, value in PRIORITIES.items() if value == priority), str(priority))


def dedup_key(sha256: str, lineage: str) -> str:
    """What makes two files the same job: the content and the lineage that learns it (64 characters)."""
    return hashlib.sha256(f"{lineage}\n{sha256}".encode()).hexdigest()


def enqueue(connection: Connection, new: NewRun, now: float) -> tuple[Run, bool]:
    """Queue a run, or find the one of the same `dedup_key`: (run, whether it is new).

    Raises:
        WrongStateError: there is a run of that id or UUID.
    """
    with transaction(connection):
        same = find_same(connection, new.dedup_key) if new.dedup_key else None
        if same is not None:
            log(connection, same.id, now, "duplicate", {"offered_as": new.id})
            return same, False
        return create_run(connection, new, now), True


def find_same(connection: Connection, dedup_key: str) -> Run | None:
    """The first run of that `dedup_key` that has learned it or still may.

    What failed, was stopped or was skipped may be dropped again: a person who does so wants it tried.
    """
    same = (RUNS.c.dedup_key == dedup_key) & RUNS.c.status.not_in(LEFT)
    query = select(RUNS).where(same).order_by(RUNS.c.created, RUNS.c.id).limit(1)
    with transaction(connection):
        row = connection.execute(query).mappings().first()
        return to_run(row) if row else None


def queued(connection: Connection, limit: int = 1000) -> tuple[Run, ...]:
    """The queue in the order in which it would start, also what is to wait longer (`not_before`)."""
    with transaction(connection):
        rows = connection.execute(_QUEUED.limit(limit)).mappings()
        return tuple(to_run(row) for row in rows)


def next_queued(connection: Connection, now: float) -> Run | None:
    """The queued run to start next: highest priority, then oldest, none before its `not_before`.

    On PostgreSQL a row that somebody else is claiming is passed over, and this one is held until the
    transaction's end (SKIP LOCKED); SQLite has one writer at a time.
    """
    with transaction(connection):
        return _next(connection, now)


def claim_next(connection: Connection, host: Host, now: float) -> Attempt | None:
    """Claim the next queued run for a worker, in one transaction; None when nothing is due."""
    with transaction(connection):
        run = _next(connection, now)
        return claim(connection, run, host, now) if run else None


def set_priority(connection: Connection, run_id: str, priority: int, now: float) -> Run:
    """Change the priority of a run that waits.

    Raises:
        WrongStateError: the run is not queued.
    """
    with transaction(connection):
        run = run_row(connection, run_id, for_update=True)
        if run.status != RunStatus.QUEUED:
            raise WrongStateError(
                f"run {run_id} is {run.status}", "a queued run", "a priority is for what still waits"
            )
        connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(priority=priority, updated=now))
        log(connection, run_id, now, "priority", {"from": run.priority, "to": priority})
        return run_row(connection, run_id)


def requeue(
    connection: Connection,
    run_id: str,
    now: float,
    *,
    why: str,
    advice: str | None = None,
    not_before: float = 0.0,
    priority: int | None = None,
    retries: int | None = None,
) -> Run:
    """Put a run back into the queue, with its reason; `created`, its place among equals, stays.

    Args:
        why: shown beside the run while it waits.
        not_before: Unix time before which it does not start.
        priority, retries: the new values, or None to leave them.

    Raises:
        WrongStateError: its state does not lead to the queue.
    """
    changes = {"not_before": not_before, "error": why, "advice": advice}
    changes |= {} if priority is None else {"priority": priority}
    changes |= {} if retries is None else {"retries": retries}
    with transaction(connection):
        moved = move(connection, run_row(connection, run_id, True), RunStatus.QUEUED, now, **changes)
        log(
            connection, run_id, now, "requeued",
            {"why": why, "not_before": not_before, "priority": priority, "retries": retries},
        )  # fmt: skip
        return moved


def skip(connection: Connection, run_id: str, now: float, reason: str, by: str = "a person") -> Run:
    """Take a run out of the queue; nothing of it is deleted.

    Raises:
        WrongStateError: its state does not allow it.
    """
    with transaction(connection):
        run = run_row(connection, run_id, True)
        moved = move(connection, run, RunStatus.SKIPPED, now, error=reason or None, advice=None)
        log(connection, run_id, now, "skipped", {"by": by, "reason": reason})
        return moved


def clear(connection: Connection, now: float, reason: str, by: str = "a person") -> tuple[Run, ...]:
    """Take everything that waits out of the queue, in one transaction; the runs that waited."""
    with transaction(connection):
        return tuple(skip(connection, run.id, now, reason, by) for run in queued(connection, 1_000_000))


def recently(connection: Connection, status: RunStatus, now: float, days: float = 7.0) -> tuple[Run, ...]:
    """Runs that came into a state (completed, failed) in the last `days` and are in it, newest first."""
    query = select(RUNS).where(RUNS.c.status == status, RUNS.c.updated >= now - days * DAY_SEC)
    with transaction(connection):
        rows = connection.execute(query.order_by(RUNS.c.updated.desc(), RUNS.c.id)).mappings()
        return tuple(to_run(row) for row in rows)


def _next(connection: Connection, now: float) -> Run | None:
    row = connection.execute(_FIRST, {"now": now}).mappings().first()
    return to_run(row) if row else None
