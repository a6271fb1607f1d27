"""The state database's runs and their history, as named functions.

Each takes the connection of `Database.session`, runs in one transaction, has committed when it returns (or
belongs to the transaction that is open already), and gives frozen records; so do those of `attempts`,
`phases`, `gates`, `commands` and `queue`. Callers pass the time, so that everything above is tested with a
frozen clock. Changes that a worker asks for carry its attempt's number, the fencing token: a worker that was
stopped, taken for dead and replaced cannot write any more when it wakes up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from scaler_wizard.errors import WrongStateError
from scaler_wizard.store.database import transaction
from scaler_wizard.store.records import NewRun, Run, RunEvent
from scaler_wizard.store.rows import check_token, log, move, run_row, to_run
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.tables import RUN_EVENTS, RUNS


def create_run(connection: Connection, new: NewRun, now: float) -> Run:
    """Queue a run.

    Raises:
        WrongStateError: there is a run of that id or UUID.
    """
    values = {**vars(new), "job": dict(new.job), "status": RunStatus.QUEUED, "created": now, "updated": now}
    try:
        with transaction(connection):
            connection.execute(insert(RUNS).values(values))
            log(connection, new.id, now, "created", {"recipe": new.recipe, "job_hash": new.job_hash})
            return run_row(connection, new.id)
    except IntegrityError as error:
        raise WrongStateError(
            f"run {new.id} exists already", "a new run id", "queue it under another id"
        ) from error


def get_run(connection: Connection, run_id: str) -> Run:
    """One run; RunNotFoundError when there is none of that id."""
    with transaction(connection):
        return run_row(connection, run_id)


def list_runs(
    connection: Connection, statuses: frozenset[RunStatus] | None = None, limit: int = 1000
) -> tuple[Run, ...]:
    """Runs, newest first; only those in one of `statuses` when given."""
    query = select(RUNS).order_by(RUNS.c.created.desc(), RUNS.c.id.desc()).limit(limit)
    if statuses is not None:
        query = query.where(RUNS.c.status.in_(sorted(statuses)))
    with transaction(connection):
        return tuple(to_run(row) for row in connection.execute(query).mappings())


def set_status(
    connection: Connection,
    run_id: str,
    status: RunStatus,
    now: float,
    *,
    token: int | None = None,
    error: str | None = None,
    advice: str | None = None,
) -> Run:
    """Move a run to another state; `error` and `advice` replace the old ones.

    Args:
        token: the attempt that asks; None for the host itself.

    Raises:
        WrongStateError: the table of transitions does not allow it, or `token` is stale.
    """
    with transaction(connection):
        if token is not None:
            check_token(connection, run_id, token)
        return move(connection, run_row(connection, run_id, True), status, now, error=error, advice=advice)


def log_event(connection: Connection, run_id: str, now: float, kind: str, data: Mapping[str, Any]) -> None:
    """Append to the run's history; it has no update and no delete."""
    with transaction(connection):
        log(connection, run_id, now, kind, data)


def run_history(
    connection: Connection, run_id: str, after_id: int = 0, limit: int = 1000
) -> tuple[RunEvent, ...]:
    """The run's history after event `after_id`, oldest first."""
    query = select(RUN_EVENTS).where(RUN_EVENTS.c.run_id == run_id, RUN_EVENTS.c.id > after_id)
    with transaction(connection):
        rows = connection.execute(query.order_by(RUN_EVENTS.c.id).limit(limit)).mappings()
        return tuple(RunEvent(**row) for row in rows)
