"""The phases of a run: begun, finished, rolled back. See `queries`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update

from scaler_wizard.errors import WrongStateError
from scaler_wizard.store.database import transaction
from scaler_wizard.store.records import Phase, PhaseStatus, Run
from scaler_wizard.store.rows import check_token, log, run_row
from scaler_wizard.store.tables import PHASES, RUNS


def start_phase(connection: Connection, run_id: str, token: int, phase: str, now: float) -> Phase:
    """A phase begins (again): the run's current phase; WrongStateError when `token` is stale."""
    with transaction(connection):
        check_token(connection, run_id, token)
        _put_phase(
            connection, run_id, phase, status="running", started=now, ended=None, checkpoint=None, metrics={}
        )
        connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(phase=phase, updated=now))
        return _phase(connection, run_id, phase)


def finish_phase(
    connection: Connection,
    run_id: str,
    token: int,
    phase: str,
    status: PhaseStatus,
    now: float,
    checkpoint: str | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Phase:
    """A phase ended, with its checkpoint's name; WrongStateError when `token` is stale."""
    with transaction(connection):
        check_token(connection, run_id, token)
        values = {"status": status, "ended": now, "checkpoint": checkpoint, "metrics": dict(metrics or {})}
        _put_phase(connection, run_id, phase, **values)
        log(connection, run_id, now, "phase", {"phase": phase, "status": status, "checkpoint": checkpoint})
        return _phase(connection, run_id, phase)


def list_phases(connection: Connection, run_id: str) -> tuple[Phase, ...]:
    """The run's phases in the order they began."""
    query = select(PHASES).where(PHASES.c.run_id == run_id).order_by(PHASES.c.started, PHASES.c.phase)
    with transaction(connection):
        return tuple(Phase(**row) for row in connection.execute(query).mappings())


def record_rollback(connection: Connection, run_id: str, phase: str, checkpoint: str, now: float) -> Run:
    """Note a finished rollback to `phase`: the phases that began after it are "rolled_back".

    Raises:
        WrongStateError: the run has no such phase.
    """
    with transaction(connection):
        target = _phase(connection, run_id, phase)
        later = (PHASES.c.run_id == run_id) & (PHASES.c.started > target.started)
        connection.execute(update(PHASES).where(later).values(status="rolled_back"))
        _put_phase(connection, run_id, phase, status="done", checkpoint=checkpoint)
        connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(phase=phase, updated=now))
        log(connection, run_id, now, "rollback", {"phase": phase, "checkpoint": checkpoint})
        return run_row(connection, run_id)


def _phase(connection: Connection, run_id: str, phase: str) -> Phase:
    query = select(PHASES).where(PHASES.c.run_id == run_id, PHASES.c.phase == phase)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise WrongStateError(
            f"run {run_id} has no phase {phase}", "a phase that was begun", "look at its phases"
        )
    return Phase(**row)


def _put_phase(connection: Connection, run_id: str, phase: str, **values: Any) -> None:
    this = (PHASES.c.run_id == run_id) & (PHASES.c.phase == phase)
    if connection.execute(update(PHASES).where(this).values(**values)).rowcount == 0:
        connection.execute(insert(PHASES).values(run_id=run_id, phase=phase, **{"metrics": {}, **values}))
