"""What the named queries share: one row, one move through the table of states, one line of history.

For the modules beside it; each function runs inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from scaler_wizard.errors import RunNotFoundError, WrongStateError
from scaler_wizard.store.records import Attempt, Run
from scaler_wizard.store.states import RunStatus, check_transition
from scaler_wizard.store.tables import ATTEMPTS, RUN_EVENTS, RUNS


def run_row(connection: Connection, run_id: str, for_update: bool = False) -> Run:
    query = select(RUNS).where(RUNS.c.id == run_id)
    row = connection.execute(query.with_for_update() if for_update else query).mappings().first()
    if row is None:
        raise RunNotFoundError(
            f'there is no run "{run_id}" in the database',
            "a run of this workspace",
            "list them with `scaler runs list`",
        )
    return to_run(row)


def to_run(row: RowMapping) -> Run:
    return Run(**{**row, "status": RunStatus(row["status"])})


def move(connection: Connection, run_id: str, status: RunStatus, now: float, **values: Any) -> None:
    before = run_row(connection, run_id, for_update=True).status
    check_transition(run_id, before, status)
    changes = {"status": status, "updated": now, **values}
    connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(changes))
    if before != status:
        log(connection, run_id, now, "status", {"from": before, "to": status, "error": values.get("error")})


def log(connection: Connection, run_id: str, now: float, kind: str, data: Mapping[str, Any]) -> None:
    connection.execute(insert(RUN_EVENTS).values(run_id=run_id, time=now, kind=kind, data=dict(data)))


def attempt_row(connection: Connection, run_id: str, number: int) -> Attempt:
    query = select(ATTEMPTS).where(ATTEMPTS.c.run_id == run_id, ATTEMPTS.c.number == number)
    return Attempt(**connection.execute(query).mappings().one())


def check_token(connection: Connection, run_id: str, token: int) -> None:
    query = select(ATTEMPTS).where(ATTEMPTS.c.run_id == run_id).order_by(ATTEMPTS.c.number.desc()).limit(1)
    newest = connection.execute(query.with_for_update()).mappings().first()
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
    is_open = (ATTEMPTS.c.run_id == run_id) & ATTEMPTS.c.ended.is_(None)
    values = {"ended": now, "outcome": outcome}
    if monotonic is not None:
        values["heartbeat_monotonic"] = monotonic
    connection.execute(update(ATTEMPTS).where(is_open).values(values))
