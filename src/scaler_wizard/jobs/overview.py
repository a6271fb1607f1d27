"""How the workspace stands, and which run a person means: operations of every host, and of none.

The picture is made of rows and of the newest events of the run at work; only what a living daemon alone knows
comes from it (`daemon`).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any

from scaler_wizard.errors import RunNotFoundError, ScalerError
from scaler_wizard.jobs.standing import load_config
from scaler_wizard.jobs.status import DaemonState, Snapshot, current_run, fold
from scaler_wizard.specs.continual import DiskSection, QueueSection
from scaler_wizard.specs.events import Event
from scaler_wizard.store import gates, inbox_files, queries, versions
from scaler_wizard.store.database import Database
from scaler_wizard.store.events_file import EventReader
from scaler_wizard.store.states import ACTIVE, FINISHED, UNFINISHED
from scaler_wizard.store.workspace import Workspace

Answer = dict[str, Any]
DAY_SEC = 86_400.0
TAIL_BYTES = 256 << 10


class Overview:
    """See the module. `alive` gives the runs whose worker this host looks after."""

    def __init__(
        self, workspace: Workspace, database: Database, alive: Callable[[], Collection[str]]
    ) -> None:
        self.workspace = workspace
        self.database = database
        self.alive = alive
        self.daemon: Callable[[], DaemonState] | None = None
        self.operations: dict[str, Callable[[Answer], Answer]] = {
            "status": self._status,
            "find_run": self._find_run,
        }

    def _find_run(self, request: Answer) -> Answer:
        """{name} -> {run}: a run by its id, the beginning of it, "latest", or its file's name (the newest).

        Without a name the run at work is meant, and the latest where none is.

        Raises:
            RunNotFoundError: no run and no file of that name.
        """
        name = str(request.get("name") or self._at_work() or "latest")
        try:
            return {"run": self.workspace.run_dir(name).id}
        except RunNotFoundError:
            with self.database.session() as connection:
                runs = queries.list_runs(connection)
            for run in runs:
                file = str((run.job.get("file") or {}).get("name") or "")
                if file and name in (file, PurePosixPath(file).name):
                    return {"run": run.id}
            raise

    def _at_work(self) -> str | None:
        with self.database.session() as connection:
            active = queries.list_runs(connection, ACTIVE, limit=1)
        return active[0].id if active else None

    def _status(self, request: Answer) -> Answer:
        """The whole picture; see `status.fold`."""
        disk, section = self._sections()
        now = time.time()
        since = now - section.recent_days * DAY_SEC
        with self.database.session() as connection:
            runs = queries.list_runs(connection, UNFINISHED)
            over = queries.list_runs(connection, FINISHED, limit=200)
            open_gates = gates.open_gates(connection)
            lineage = versions.list_versions(connection)
            seen = inbox_files.recent(connection, since)
        runs += tuple(run for run in over if run.updated >= since)
        current = current_run(runs)
        snapshot = Snapshot(
            now=now, workspace=str(self.workspace.root), runs=runs, gates=open_gates, versions=lineage,
            inbox=seen, events=self._tail(current.id) if current else (), alive=frozenset(self.alive()),
            free_bytes=shutil.disk_usage(self.workspace.root).free, disk=disk,
            daemon=self.daemon() if self.daemon else None,
        )  # fmt: skip
        return fold(snapshot)

    def _sections(self) -> tuple[DiskSection, QueueSection]:
        try:
            config = load_config(self.workspace)
        except ScalerError:
            # A workspace that only grows models has none; a broken one is the daemon's to report.
            return DiskSection(), QueueSection()
        return config.disk, config.queue

    def _tail(self, run: str) -> list[Event]:
        """The newest events of a run, oldest first, from the last 256 KiB of its event file."""
        path = self.workspace.run_dir(run).events
        try:
            with path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                return list(EventReader(path).read(file))
        except OSError:
            return []
