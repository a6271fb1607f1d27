"""A process that is killed at a chosen commit of its database, for fault tests of the real code.

Beside `faulty`, which does the same to files. Counts commits that changed something: before the database's
own commit everything in it is lost, after it the process had no time to act on it. Both are SIGKILL, so no
handler runs and nothing is closed.
"""

from __future__ import annotations

import os
import signal
from typing import Literal

from sqlalchemy import Connection, Engine, event

Instant = Literal["before", "after"]


class CommitCounter:
    """Counts the writing commits of every SQLite engine of this process, and ends the process at one of them.

    Args:
        die_at: number of the commit, from 0; None only counts.
        instant: before its changes are on the disk, or right after.
    """

    def __init__(self, die_at: int | None = None, instant: Instant = "before") -> None:
        self.die_at = die_at
        self.instant = instant
        self.commits = 0
        self._changes = 0

    def listen(self) -> None:
        """From now on, for as long as the process lives."""
        event.listen(Engine, "commit", self._on_commit)

    def _on_commit(self, connection: Connection) -> None:
        driver = connection.connection.dbapi_connection
        assert driver is not None
        if driver.total_changes == self._changes:
            return  # every reading transaction is committed too
        self._changes = driver.total_changes
        number, self.commits = self.commits, self.commits + 1
        if number == self.die_at:
            if self.instant == "after":
                driver.commit()
            os.kill(os.getpid(), signal.SIGKILL)
