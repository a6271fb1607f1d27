"""Every question to and change of the state database about runs, as named functions.

Each takes the connection of `Database.session`, runs in one transaction, has committed when it returns,
and gives frozen records. Callers pass the time, so that everything above is tested with a frozen clock.
Changes that a worker asks for carry its attempt's number, the fencing token: a worker that was stopped,
taken for dead and replaced cannot write any more when it wakes up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from scaler_wizard.errors import RunNotFoundError, WrongStateError
from scaler_wizard.store.database import transaction
from scaler_wizard.store.records import (
    Attempt,
    CommandRow,
    Gate,
    GateAction,
    Host,
    NewRun,
    Phase,
    PhaseStatus,
    Run,
    RunEvent,
)
from scaler_wizard.store.states import Command, RunStatus, check_command, check_transition
from scaler_wizard.store.tables import ATTEMPTS, COMMANDS, GATES, PHASES, RUN_EVENTS, RUNS


def create_run(connection: Connection, new: NewRun, now: float) -> Run:
    """Queue a run.

    Raises:
        WrongStateError: there is a run of that id or UUID.
    """
    values = {**vars(new), "job": dict(new.job), "status": RunStatus.QUEUED, "created": now, "updated": now}
    try:
        with transaction(connection):
            connection.execute(insert(RUNS).values(values))
            _log(connection, new.id, now, "created", {"recipe": new.recipe, "job_hash": new.job_hash})
            return _run(connection, new.id)
    except IntegrityError as error:
        raise WrongStateError(
            f"run {new.id} exists already", "a new run id", "queue it under another id"
        ) from error


def get_run(connection: Connection, run_id: str) -> Run:
    """One run; RunNotFoundError when there is none of that id."""
    with transaction(connection):
        return _run(connection, run_id)


def list_runs(
    connection: Connection, statuses: frozenset[RunStatus] | None = None, limit: int = 1000
) -> tuple[Run, ...]:
    """Runs, newest first; only those in one of `statuses` when given."""
    query = select(RUNS).order_by(RUNS.c.created.desc(), RUNS.c.id.desc()).limit(limit)
    if statuses is not None:
        query = query.where(RUNS.c.status.in_(sorted(statuses)))
    with transaction(connection):
        return tuple(_to_run(row) for row in connection.execute(query).mappings())


def next_queued(connection: Connection, now: float) -> Run | None:
    """The queued run to start next: highest priority, then oldest, none before its `not_before`."""
    query = (
        select(RUNS)
        .where(RUNS.c.status == RunStatus.QUEUED, RUNS.c.not_before <= now)
        .order_by(RUNS.c.priority.desc(), RUNS.c.created, RUNS.c.id)
        .limit(1)
    )
    with transaction(connection):
        row = connection.execute(query).mappings().first()
        return _to_run(row) if row else None


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
            _check_token(connection, run_id, token)
        _move(connection, run_id, status, now, error=error, advice=advice)
        return _run(connection, run_id)


def start_attempt(connection: Connection, run_id: str, host: Host, now: float) -> Attempt:
    """Claim a queued run for a new worker: state initializing, a token higher than all before.

    Raises:
        WrongStateError: the run is not queued (somebody was faster).
    """
    with transaction(connection):
        run = _run(connection, run_id, for_update=True)
        if run.status != RunStatus.QUEUED:
            raise WrongStateError(f"run {run_id} is {run.status}", "a queued run", "resume it first")
        _end_open_attempts(connection, run_id, now, "superseded")
        highest = select(func.coalesce(func.max(ATTEMPTS.c.number), 0)).where(ATTEMPTS.c.run_id == run_id)
        number = int(connection.execute(highest).scalar_one()) + 1
        connection.execute(
            insert(ATTEMPTS).values(run_id=run_id, number=number, boot_id=host.boot_id, started=now)
        )
        owner = {"host": host.name, "host_pid": host.pid, "host_boot_id": host.boot_id}
        _move(connection, run_id, RunStatus.INITIALIZING, now, **owner)
        return _attempt(connection, run_id, number)


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
) -> Run:
    """Close the newest attempt and move its run to `status`, in one transaction.

    Raises:
        WrongStateError: `token` is stale, or the transition is not allowed.
    """
    with transaction(connection):
        _check_token(connection, run_id, token)
        _end_open_attempts(connection, run_id, now, outcome)
        _move(connection, run_id, status, now, error=error, advice=advice)
        return _run(connection, run_id)


def latest_attempt(connection: Connection, run_id: str) -> Attempt | None:
    """The newest attempt, ended or not."""
    query = select(ATTEMPTS).where(ATTEMPTS.c.run_id == run_id).order_by(ATTEMPTS.c.number.desc()).limit(1)
    with transaction(connection):
        row = connection.execute(query).mappings().first()
        return Attempt(**row) if row else None


def start_phase(connection: Connection, run_id: str, token: int, phase: str, now: float) -> Phase:
    """A phase begins (again): the run's current phase; WrongStateError when `token` is stale."""
    with transaction(connection):
        _check_token(connection, run_id, token)
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
        _check_token(connection, run_id, token)
        values = {"status": status, "ended": now, "checkpoint": checkpoint, "metrics": dict(metrics or {})}
        _put_phase(connection, run_id, phase, **values)
        _log(connection, run_id, now, "phase", {"phase": phase, "status": status, "checkpoint": checkpoint})
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
        _log(connection, run_id, now, "rollback", {"phase": phase, "checkpoint": checkpoint})
        return _run(connection, run_id)


def open_gate(
    connection: Connection, run_id: str, token: int, gate: str, sentence: str, now: float, deadline: float
) -> Gate:
    """Ask a person: the run waits. An open gate of the same name is returned as it is (a restarted worker).

    Raises:
        WrongStateError: `token` is stale, or the run cannot wait now.
    """
    with transaction(connection):
        _check_token(connection, run_id, token)
        _move(connection, run_id, RunStatus.WAITING, now)
        same = (GATES.c.run_id == run_id) & (GATES.c.gate == gate) & GATES.c.answered.is_(None)
        row = connection.execute(select(GATES).where(same)).mappings().first()
        if row is not None:
            return Gate(**row)
        values = {"run_id": run_id, "gate": gate, "sentence": sentence, "opened": now, "deadline": deadline}
        gate_id = connection.execute(insert(GATES).values(values)).inserted_primary_key
        assert gate_id is not None
        _log(
            connection, run_id, now, "gate_opened", {"gate": gate, "sentence": sentence, "deadline": deadline}
        )
        return _gate(connection, gate_id[0])


def answer_gate(
    connection: Connection,
    gate_id: int,
    action: GateAction,
    by: str,
    reason: str,
    decision_id: str,
    now: float,
    target_phase: str | None = None,
) -> Gate:
    """Record the answer to a gate. The same `decision_id` again (a double click, a retry) changes nothing.

    Raises:
        RunNotFoundError: no such gate.
        WrongStateError: another decision answered it, or this one answered another gate; says which.
    """
    with transaction(connection):
        found = _gate(connection, gate_id, for_update=True)
        if found.decision_id == decision_id:
            return found
        used = select(GATES.c.gate).where(GATES.c.decision_id == decision_id)
        if (other := connection.execute(used).scalar_one_or_none()) is not None:
            raise WrongStateError(
                f'decision "{decision_id}" answered gate {other} already',
                "a new decision id for each decision",
            )
        if found.answered is not None:
            raise WrongStateError(
                f"gate {found.gate} of run {found.run_id} was answered: {found.action} by {found.by}",
                "an open gate",
                "look at the run's state again",
            )
        values = {
            "action": action, "by": by, "reason": reason, "answered": now, "decision_id": decision_id,
            "target_phase": target_phase,
        }  # fmt: skip
        connection.execute(update(GATES).where(GATES.c.id == gate_id).values(values))
        _log(connection, found.run_id, now, "gate_answered", {"gate": found.gate, "action": action, "by": by})
        return _gate(connection, gate_id)


def open_gates(connection: Connection, run_id: str | None = None) -> tuple[Gate, ...]:
    """Gates without an answer, of one run or of all, oldest first."""
    query = select(GATES).where(GATES.c.answered.is_(None)).order_by(GATES.c.id)
    if run_id is not None:
        query = query.where(GATES.c.run_id == run_id)
    with transaction(connection):
        return tuple(Gate(**row) for row in connection.execute(query).mappings())


def newest_gate(connection: Connection, run_id: str, gate: str) -> Gate | None:
    """The gate of that name asked last, answered or not."""
    this = (GATES.c.run_id == run_id) & (GATES.c.gate == gate)
    query = select(GATES).where(this).order_by(GATES.c.id.desc()).limit(1)
    with transaction(connection):
        row = connection.execute(query).mappings().first()
        return Gate(**row) if row else None


def add_command(
    connection: Connection,
    run_id: str,
    action: Command,
    now: float,
    target_phase: str | None = None,
    reason: str = "",
) -> CommandRow:
    """File a person's request. One that is pending already is returned instead of filed twice.

    Raises:
        WrongStateError: not possible in the run's state; says what is.
    """
    with transaction(connection):
        check_command(run_id, _run(connection, run_id, for_update=True).status, action)
        pending = (
            (COMMANDS.c.run_id == run_id) & (COMMANDS.c.action == action) & COMMANDS.c.consumed.is_(None)
        )
        query = select(COMMANDS).where(pending, COMMANDS.c.target_phase.is_not_distinct_from(target_phase))
        row = connection.execute(query).mappings().first()
        if row is None:
            values = {"run_id": run_id, "action": action, "target_phase": target_phase, "reason": reason}
            connection.execute(insert(COMMANDS).values(**values, created=now))
            _log(connection, run_id, now, "command", {"action": action, "target_phase": target_phase})
            row = connection.execute(query).mappings().one()
        return _to_command(row)


def pending_commands(connection: Connection, run_id: str | None = None) -> tuple[CommandRow, ...]:
    """Commands nobody acted on yet, oldest first."""
    query = select(COMMANDS).where(COMMANDS.c.consumed.is_(None)).order_by(COMMANDS.c.id)
    if run_id is not None:
        query = query.where(COMMANDS.c.run_id == run_id)
    with transaction(connection):
        return tuple(_to_command(row) for row in connection.execute(query).mappings())


def consume_command(connection: Connection, command_id: int, now: float) -> bool:
    """Mark a command as acted on; False when it already was (so that it is acted on once)."""
    unread = (COMMANDS.c.id == command_id) & COMMANDS.c.consumed.is_(None)
    with transaction(connection):
        return connection.execute(update(COMMANDS).where(unread).values(consumed=now)).rowcount == 1


def log_event(connection: Connection, run_id: str, now: float, kind: str, data: Mapping[str, Any]) -> None:
    """Append to the run's history; it has no update and no delete."""
    with transaction(connection):
        _log(connection, run_id, now, kind, data)


def run_history(
    connection: Connection, run_id: str, after_id: int = 0, limit: int = 1000
) -> tuple[RunEvent, ...]:
    """The run's history after event `after_id`, oldest first."""
    query = select(RUN_EVENTS).where(RUN_EVENTS.c.run_id == run_id, RUN_EVENTS.c.id > after_id)
    with transaction(connection):
        rows = connection.execute(query.order_by(RUN_EVENTS.c.id).limit(limit)).mappings()
        return tuple(RunEvent(**row) for row in rows)


def _run(connection: Connection, run_id: str, for_update: bool = False) -> Run:
    query = select(RUNS).where(RUNS.c.id == run_id)
    row = connection.execute(query.with_for_update() if for_update else query).mappings().first()
    if row is None:
        raise RunNotFoundError(
            f'there is no run "{run_id}" in the database',
            "a run of this workspace",
            "list them with `scaler runs list`",
        )
    return _to_run(row)


def _to_run(row: RowMapping) -> Run:
    return Run(**{**row, "status": RunStatus(row["status"])})


def _to_command(row: RowMapping) -> CommandRow:
    return CommandRow(**{**row, "action": Command(row["action"])})


def _move(connection: Connection, run_id: str, status: RunStatus, now: float, **values: Any) -> None:
    before = _run(connection, run_id, for_update=True).status
    check_transition(run_id, before, status)
    changes = {"status": status, "updated": now, **values}
    connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(changes))
    if before != status:
        _log(connection, run_id, now, "status", {"from": before, "to": status, "error": values.get("error")})


def _log(connection: Connection, run_id: str, now: float, kind: str, data: Mapping[str, Any]) -> None:
    connection.execute(insert(RUN_EVENTS).values(run_id=run_id, time=now, kind=kind, data=dict(data)))


def _attempt(connection: Connection, run_id: str, number: int) -> Attempt:
    query = select(ATTEMPTS).where(ATTEMPTS.c.run_id == run_id, ATTEMPTS.c.number == number)
    return Attempt(**connection.execute(query).mappings().one())


def _check_token(connection: Connection, run_id: str, token: int) -> None:
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


def _update_attempt(connection: Connection, run_id: str, token: int, **values: Any) -> Attempt:
    with transaction(connection):
        _check_token(connection, run_id, token)
        this = (ATTEMPTS.c.run_id == run_id) & (ATTEMPTS.c.number == token)
        connection.execute(update(ATTEMPTS).where(this).values(**values))
        return _attempt(connection, run_id, token)


def _end_open_attempts(connection: Connection, run_id: str, now: float, outcome: str) -> None:
    is_open = (ATTEMPTS.c.run_id == run_id) & ATTEMPTS.c.ended.is_(None)
    connection.execute(update(ATTEMPTS).where(is_open).values(ended=now, outcome=outcome))


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


def _gate(connection: Connection, gate_id: int, for_update: bool = False) -> Gate:
    query = select(GATES).where(GATES.c.id == gate_id)
    row = connection.execute(query.with_for_update() if for_update else query).mappings().first()
    if row is None:
        raise RunNotFoundError(
            f"there is no gate {gate_id}", "a gate that was opened", "look at the open gates"
        )
    return Gate(**row)
