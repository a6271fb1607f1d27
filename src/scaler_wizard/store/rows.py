"""What the named queries share: one row, one move through the table of states, one line of history.

For the modules beside it; each function runs inside the caller's transaction. Statements of every cycle of
the queue are built once: building them anew took half of a cycle's time (benchmarks/job_queue.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, insert, select, update

from scaler_wizard.errors import RunNotFoundError, WrongStateError
from scaler_wizard.store.records import Attempt, Run
from scaler_wizard.store.states import RunStatus, check_transition
from scaler_wizard.store.tables import ATTEMPTS, RUN_EVENTS, RUNS

_RUN = select(RUNS).where(RUNS.c.id == bindparam("run"))
_RUN_HELD = _RUN.with_for_update()
_MOVE = update(RUNS).where(RUNS.c.id == bindparam("run")).returning(RUNS)
_NEWEST = (
    select(ATTEMPTS)
    .where(ATTEMPTS.c.run_id == bindparam("run"))
    .order_by(ATTEMPTS.c.number.desc())
    .limit(1)
    .with_for_update()
)
_END_OPEN = update(ATTEMPTS).where(ATTEMPTS.c.run_id == bindparam("run"), ATTEMPTS.c.ended.is_(None))
_LOG = insert(RUN_EVENTS)


def run_row(connection: Connection, run_id: str, for_update: bool = False) -> Run:
    """The run, held until the transaction's end `for_update`; RunNotFoundError when there is none."""
    row = connection.execute(_RUN_HELD if for_update else _RUN, {"run": run_id}).mappings().first()
    if row is None:
        raise RunNotFoundError(
            f'there is no run "{run_id}" in the database',
            "a run of this workspace",
            "list them with `scaler runs list`",
        )
    return to_run(row)


def to_run(row: RowMapping) -> Run:
    return Run(**{**row, "status": RunStatus(row["status"])})


def move(connection: Connection, run: Run, status: RunStatus, now: float, **values: Any) -> Run:
    """Take a run that was just read in this transaction to another state; as it then is.

    Raises:
        WrongStateError: the table of transitions does not allow it.
    """
    check_transition(run.id, run.status, status)
    changes = {"run": run.id, "status": status, "updated": now, **values}
    moved = to_run(connection.execute(_MOVE, changes).mappings().one())
    if run.status != status:
        said = {"from": run.status, "to": status, "error": values.get("error")}
        log(connection, run.id, now, "status", said)
    return moved


def log(connection: Connection, run_id: str, now: float, kind: str, data: Mapping[str, Any]) -> None:
    connection.execute(_LOG, {"run_id": run_id, "time": now, "kind": kind, "data": dict(data)})


def attempt_row(connection: Connection, run_id: str, number: int) -> Attempt:
    query = select(ATTEMPTS).where(ATTEMPTS.c.run_id == run_id, ATTEMPTS.c.number == number)
    return Attempt(**connection.execute(query).mappings().one())


def check_token(connection: Connection, run_id: str, token: int) -> None:
    newest = connection.execute(_NEWEST, {"run": run_id}).mappings().first()
    if newest is None or newest["number"] != token or newest["ended"] is not None:
        state = "none was started" if newest is None else f"the newest is {newest['number']}"
        ended = " and has ended" if newest is not None and newest["ended"] is not None else ""
        raise WrongStateError(
            f"attempt {token} of run {run_id} may not write any more ({state}{ended})",
            "the newest attempt",
            "the stale worker must leave; its work since its last checkpoint is not used",
        )


def end_open_attempts(
    connection: Connection, run_id: str, now: float, outcome: str, monotonic: float | None = None
) -> None:
    values = {"run": run_id, "ended": now, "outcome": outcome}
    if monotonic is not None:
        values["heartbeat_monotonic"] = monotonic
    connection.execute(_END_OPEN, values)
