"""Commands: what a person asked of a living worker, with the reason; each acted on once. See `queries`."""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, bindparam, insert, select, update

from scaler_wizard.store.database import transaction
from scaler_wizard.store.records import CommandRow
from scaler_wizard.store.rows import log, run_row
from scaler_wizard.store.states import Command, check_command
from scaler_wizard.store.tables import COMMANDS

_PENDING = select(COMMANDS).where(COMMANDS.c.consumed.is_(None)).order_by(COMMANDS.c.id)
# Asked at every step of a worker: built once.
_PENDING_OF = _PENDING.where(COMMANDS.c.run_id == bindparam("run"))


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
        check_command(run_id, run_row(connection, run_id, for_update=True).status, action)
        pending = (
            (COMMANDS.c.run_id == run_id) & (COMMANDS.c.action == action) & COMMANDS.c.consumed.is_(None)
        )
        query = select(COMMANDS).where(pending, COMMANDS.c.target_phase.is_not_distinct_from(target_phase))
        row = connection.execute(query).mappings().first()
        if row is None:
            values = {"run_id": run_id, "action": action, "target_phase": target_phase, "reason": reason}
            connection.execute(insert(COMMANDS).values(**values, created=now))
            log(
                connection, run_id, now, "command",
                {"action": action, "target_phase": target_phase, "reason": reason},
            )  # fmt: skip
            row = connection.execute(query).mappings().one()
        return _to_command(row)


def pending_commands(connection: Connection, run_id: str | None = None) -> tuple[CommandRow, ...]:
    """Commands nobody acted on yet, oldest first."""
    with transaction(connection):
        query, values = (_PENDING, {}) if run_id is None else (_PENDING_OF, {"run": run_id})
        return tuple(_to_command(row) for row in connection.execute(query, values).mappings())


def consume_command(connection: Connection, command_id: int, now: float) -> bool:
    """Mark a command as acted on; False when it already was (so that it is acted on once)."""
    unread = (COMMANDS.c.id == command_id) & COMMANDS.c.consumed.is_(None)
    with transaction(connection):
        return connection.execute(update(COMMANDS).where(unread).values(consumed=now)).rowcount == 1


def forget_commands(connection: Connection, run_id: str, now: float) -> int:
    """Mark all pending ones as consumed: they were meant for a worker that is gone. Their number."""
    unread = (COMMANDS.c.run_id == run_id) & COMMANDS.c.consumed.is_(None)
    with transaction(connection):
        return connection.execute(update(COMMANDS).where(unread).values(consumed=now)).rowcount


def _to_command(row: RowMapping) -> CommandRow:
    return CommandRow(**{**row, "action": Command(row["action"])})
