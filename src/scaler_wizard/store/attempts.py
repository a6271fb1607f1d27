"""Attempts: one worker process each, numbered; the number is the fencing token. See `queries`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from scaler_wizard.errors import WrongStateError
from scaler_wizard.store.database import transaction
from scaler_wizard.store.records import Attempt, Host, Run
from scaler_wizard.store.rows import attempt_row, check_token, end_open_attempts, move, run_row
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.tables import ATTEMPTS

_HIGHEST = select(func.coalesce(func.max(ATTEMPTS.c.number), 0)).where(ATTEMPTS.c.run_id == bindparam("run"))
_NEXT = insert(ATTEMPTS).values(number=_HIGHEST.scalar_subquery() + 1).returning(ATTEMPTS)


def start_attempt(connection: Connection, run_id: str, host: Host, now: float) -> Attempt:
    """Claim a queued run for a new worker: state initializing, a token higher than all before.

    Raises:
        WrongStateError: the run is not queued (somebody was faster).
    """
    with transaction(connection):
        return claim(connection, run_row(connection, run_id, for_update=True), host, now)


def claim(connection: Connection, run: Run, host: Host, now: float) -> Attempt:
    """`start_attempt` of a run that was just read in the caller's transaction."""
    if run.status != RunStatus.QUEUED:
        raise WrongStateError(f"run {run.id} is {run.status}", "a queued run", "resume it first")
    end_open_attempts(connection, run.id, now, "superseded")
    values = {"run_id": run.id, "boot_id": host.boot_id, "started": now, "run": run.id}
    attempt = Attempt(**connection.execute(_NEXT, values).mappings().one())
    owner = {"host": host.name, "host_pid": host.pid, "host_boot_id": host.boot_id}
    move(connection, run, RunStatus.INITIALIZING, now, **owner)
    return attempt


def record_worker(connection: Connection, run_id: str, token: int, pid: int) -> Attempt:
    """Note the worker's process id; WrongStateError when `token` is stale."""
    return _update_attempt(connection, run_id, token, pid=pid)


def report_heartbeat(connection: Connection, run_id: str, token: int, monotonic: float) -> Attempt:
    """Note progress at `monotonic` (seconds, the boot's monotonic clock).

    Raises:
        WrongStateError: a newer attempt owns the run, or this one has ended.
    """
    return _update_attempt(connection, run_id, token, heartbeat_monotonic=monotonic)


def end_attempt(
    connection: Connection,
    run_id: str,
    token: int,
    outcome: str,
    status: RunStatus,
    now: float,
    *,
    error: str | None = None,
    advice: str | None = None,
    monotonic: float | None = None,
) -> Run:
    """Close the newest attempt and move its run to `status`, in one transaction.

    Args:
        monotonic: the boot's monotonic clock at its end, where the attempt belongs to this boot.

    Raises:
        WrongStateError: `token` is stale, or the transition is not allowed.
    """
    with transaction(connection):
        check_token(connection, run_id, token)
        end_open_attempts(connection, run_id, now, outcome, monotonic)
        run = run_row(connection, run_id, for_update=True)
        return move(connection, run, status, now, error=error, advice=advice)


def latest_attempt(connection: Connection, run_id: str) -> Attempt | None:
    """The newest attempt, ended or not."""
    query = select(ATTEMPTS).where(ATTEMPTS.c.run_id == run_id).order_by(ATTEMPTS.c.number.desc()).limit(1)
    with transaction(connection):
        row = connection.execute(query).mappings().first()
        return Attempt(**row) if row else None


def list_attempts(connection: Connection, run_id: str) -> tuple[Attempt, ...]:
    """The run's attempts, newest first."""
    query = select(ATTEMPTS).where(ATTEMPTS.c.run_id == run_id).order_by(ATTEMPTS.c.number.desc())
    with transaction(connection):
        return tuple(Attempt(**row) for row in connection.execute(query).mappings())


def check_attempt(connection: Connection, run_id: str, token: int) -> None:
    """WrongStateError unless `token` is the newest attempt's and that one has not ended."""
    with transaction(connection):
        check_token(connection, run_id, token)


def _update_attempt(connection: Connection, run_id: str, token: int, **values: Any) -> Attempt:
    with transaction(connection):
        check_token(connection, run_id, token)
        this = (ATTEMPTS.c.run_id == run_id) & (ATTEMPTS.c.number == token)
        connection.execute(update(ATTEMPTS).where(this).values(**values))
        return attempt_row(connection, run_id, token)
