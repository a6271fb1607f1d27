"""What the daemon does between jobs: ballast, disk, daily snapshot, retention, consolidation.

`tick` is called every half minute and may be called at any time, twice, or after a month of sleep: whatever
is due is found from what lies on the disk, so a restarted daemon neither forgets nor repeats.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta

from scaler_wizard.errors import ScalerError
from scaler_wizard.jobs import consolidation, retention
from scaler_wizard.jobs.disk import GB, DiskVerdict, disk_verdict
from scaler_wizard.jobs.notify import Notifier
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store import backup, flightlog, versions
from scaler_wizard.store.ballast import Ballast
from scaler_wizard.store.database import Database
from scaler_wizard.store.workspace import Workspace

log = logging.getLogger(__name__)
RETENTION_EVERY_SEC = 3600.0
_DAY = timedelta(days=1)


class Housekeeping:
    """Keeps one workspace in order. `tick` may run in any thread; the database has its own lock."""

    def __init__(
        self,
        workspace: Workspace,
        database: Database,
        config: ContinualConfig,
        notifier: Notifier,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        self.workspace = workspace
        self.database = database
        self.config = config
        self.notifier = notifier
        self.ballast = Ballast(workspace.root, config.disk.ballast_mb)
        self.verdict: DiskVerdict = "ok"
        """The disk as the last tick saw it."""
        self.wants_consolidation = False
        """Enough versions stand on one adapter, and nothing is to do: the daemon may queue a merge."""
        self._free = free_bytes or (lambda: shutil.disk_usage(workspace.root).free)
        self._retained = 0.0

    def tick(self, now: float, idle: bool) -> list[str]:
        """Do what is due and say what was done, one sentence each.

        Args:
            now: Unix seconds.
            idle: no worker runs and nothing is queued.
        """
        done: list[str] = []
        for step in (self._disk, self._snapshot, self._retention):
            try:
                done += step(now)
            except (ScalerError, OSError) as error:
                # One chore that fails must not keep the others from being done; it is tried again.
                log.warning("housekeeping: %s", error)
                done.append(f"failed: {error}")
        self.wants_consolidation = idle and self._consolidation_due()
        return done

    def _disk(self, now: float) -> list[str]:
        free = self._free()
        done = []
        held = self.ballast.is_held()
        if not held and self.ballast.reserve(free):
            done.append(f"reserved {self.ballast.n_bytes >> 20} MiB for a full disk")
        before, self.verdict = self.verdict, disk_verdict(free, self.config.disk)
        if self.verdict == before:
            return done
        text = f"{free / GB:.1f} GB are free"
        if self.verdict == "ok":
            return [*done, f"disk: {text}, enough again"]
        limit = self.config.disk
        text += (
            f", less than {limit.refuse_below_gb:g} GB: no job starts until there is more"
            if self.verdict == "refuse"
            else f", less than {limit.warn_below_gb:g} GB"
        )
        self.notifier.send("disk", "Scaler Wizard: disk space is low", text)
        flightlog.append(self.workspace.flight_log, "disk", "", {"verdict": self.verdict, "free": free}, now)
        return [*done, f"disk: {text}"]

    def _snapshot(self, now: float) -> list[str]:
        newest = max(
            (item.created for item in backup.list_backups(self.workspace) if item.why == backup.DAILY),
            default=None,
        )
        if not snapshot_due(newest, now, self.config.retention.snapshot_at):
            return []
        with self.database.session() as connection:
            pins = retention.write_pins(connection, self.workspace)
            keep = self.config.retention.backups
            made = backup.create(connection, self.workspace, backup.DAILY, now, keep, {retention.PINS: pins})
        return [f"daily snapshot {made.name}"]

    def _retention(self, now: float) -> list[str]:
        if now - self._retained < RETENTION_EVERY_SEC:
            return []
        self._retained = now
        section = self.config.retention
        with self.database.session() as connection:
            versions.sweep(connection, self.workspace)
            decided = retention.plan(connection, self.workspace, section, now)
            if not decided.deletions:
                retention.sweep_trash(self.workspace)
                return []
            backup.create(connection, self.workspace, "retention", now, section.backups)
        gone = retention.carry_out(self.workspace, decided)
        flightlog.append(
            self.workspace.flight_log, "retention", "", {"deleted": gone, "by": "housekeeping"}, now
        )
        return [f"retention: {decided.words()}"]

    def _consolidation_due(self) -> bool:
        with self.database.session() as connection:
            rows = versions.list_versions(connection, self.config.lineage.model_name)
            return consolidation.is_due(connection, rows, self.config)


def snapshot_due(newest: float | None, now: float, at: str) -> bool:
    """Whether a daily snapshot is due: none was made since the last time the clock passed `at`. Pure.

    Args:
        newest: Unix seconds of the newest one, None when there is none.
        at: local time, HH:MM.
    """
    here = datetime.fromtimestamp(now)
    hour, minute = (int(part) for part in at.split(":"))
    moment = here.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if moment > here:
        moment -= _DAY
    return newest is None or newest < moment.timestamp()
