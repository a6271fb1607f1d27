"""Gates: questions to a person and their answers, each answered once. See `queries`."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

from scaler_wizard.errors import RunNotFoundError, WrongStateError
from scaler_wizard.store.database import transaction
from scaler_wizard.store.records import Gate, GateAction
from scaler_wizard.store.rows import check_token, log, move, run_row
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.tables import GATES


def open_gate(
    connection: Connection, run_id: str, token: int, gate: str, sentence: str, now: float, deadline: float
) -> Gate:
    """Ask a person: the run waits. An open gate of the same name is returned as it is (a restarted worker).

    Raises:
        WrongStateError: `token` is stale, or the run cannot wait now.
    """
    with transaction(connection):
        check_token(connection, run_id, token)
        move(connection, run_row(connection, run_id, True), RunStatus.WAITING, now)
        same = (GATES.c.run_id == run_id) & (GATES.c.gate == gate) & GATES.c.answered.is_(None)
        row = connection.execute(select(GATES).where(same)).mappings().first()
        if row is not None:
            return Gate(**row)
        values = {"run_id": run_id, "gate": gate, "sentence": sentence, "opened": now, "deadline": deadline}
        gate_id = connection.execute(insert(GATES).values(values)).inserted_primary_key
        assert gate_id is not None
        log(
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
        log(connection, found.run_id, now, "gate_answered", {"gate": found.gate, "action": action, "by": by})
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


def _gate(connection: Connection, gate_id: int, for_update: bool = False) -> Gate:
    query = select(GATES).where(GATES.c.id == gate_id)
    row = connection.execute(query.with_for_update() if for_update else query).mappings().first()
    if row is None:
        raise RunNotFoundError(
            f"there is no gate {gate_id}", "a gate that was opened", "look at the open gates"
        )
    return Gate(**row)
