"""What has been seen in the inbox and what became of it: rows of the state database.

Each is one path with one size and time (`key`, made by `jobs.inbox.Entry`), so that a file left lying there
is not taken again after a restart, and one that changed is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from scaler_wizard.store.database import transaction
from scaler_wizard.store.tables import INBOX_FILES, RUNS

Sighted = Literal["queued", "failed", "duplicate", "refused"]


@dataclass(frozen=True)
class InboxFile:
    """One file as it was seen once."""

    key: str
    name: str
    """Its path in the inbox as text for people."""
    outcome: Sighted
    run_id: str | None
    """The run that learns from it; for a duplicate the run that has the same content."""
    sha256: str | None
    """Hash of its content, where it was read."""
    note: str
    """Why it was refused, or what is worth knowing."""
    seen: float
    """Unix time in seconds."""


def record(connection: Connection, file: InboxFile) -> bool:
    """Note what became of a file; False when that was noted before (a daemon killed just after it)."""
    try:
        with transaction(connection):
            connection.execute(insert(INBOX_FILES).values(**asdict(file)))
    except IntegrityError:
        return False
    return True


def known_keys(connection: Connection) -> list[str]:
    """The key of everything that was seen."""
    with transaction(connection):
        return list(connection.execute(select(INBOX_FILES.c.key)).scalars())


def queued_runs(connection: Connection) -> list[str]:
    """The id of every run that was ever queued."""
    with transaction(connection):
        return list(connection.execute(select(RUNS.c.id)).scalars())


def recent(connection: Connection, since: float, limit: int = 50) -> tuple[InboxFile, ...]:
    """What was seen after `since` (Unix time), newest first."""
    query = select(INBOX_FILES).where(INBOX_FILES.c.seen >= since)
    with transaction(connection):
        rows = connection.execute(query.order_by(INBOX_FILES.c.seen.desc()).limit(limit)).mappings()
        return tuple(InboxFile(**row) for row in rows)
