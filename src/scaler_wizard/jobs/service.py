"""What every request to a workspace means: the only writer of its database, and its one door.

`handle` takes one request (a dict with "op") and returns one answer. The host calls it for its socket,
a command without a host calls it directly under the workspace's lock; both mean the same. Decisions are
made by pure functions elsewhere (`schedule`, `watchdog`, `store/states`, `safety/gates`); the rooms of this
door look up and commit: `catalog` (create, list, show), `queueing`, `workers`, `decisions`, `rollbacks`,
and `reports`, the worker's half.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from scaler_wizard.errors import SpecError
from scaler_wizard.jobs.catalog import Catalog
from scaler_wizard.jobs.completion import Completion
from scaler_wizard.jobs.decisions import Decisions
from scaler_wizard.jobs.dispatch import Dispatcher
from scaler_wizard.jobs.heartbeats import Heartbeats
from scaler_wizard.jobs.maintenance import Maintenance
from scaler_wizard.jobs.overview import Overview
from scaler_wizard.jobs.queueing import Queueing
from scaler_wizard.jobs.reports import WorkerReports
from scaler_wizard.jobs.rollbacks import Rollbacks
from scaler_wizard.jobs.schedule import Decision
from scaler_wizard.jobs.workers import Workers
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store.ballast import Ballast
from scaler_wizard.store.database import Database
from scaler_wizard.store.workspace import Workspace

Answer = dict[str, Any]
WITHOUT_RUN = frozenset({"ping", "create", "runs", "models", "queue", "clear", "hold", "release"})


class Service:
    """One workspace's operations. Use as a context manager; the caller holds the workspace's lock.

    Args:
        config: the rules of a host that stays (retries, restarts, watchdog, disk guard). Without one nothing
            is tried again by itself: a person who runs one job in the foreground decides.
    """

    def __init__(self, workspace: Workspace, config: ContinualConfig | None = None) -> None:
        self.workspace = workspace
        self.database = Database.open(workspace.database_address)
        self.heartbeats = Heartbeats()
        rollbacks = Rollbacks(workspace, self.database)
        completion = Completion(workspace, self.database, rollbacks)
        self.workers = Workers(workspace, self.database, self.heartbeats, completion)
        self.dispatcher = Dispatcher(workspace, self.database, self.workers, completion)
        if config is not None:
            self.configure(config)
        # On a full disk it is given up, so that what was asked can still be written down.
        self._ballast = Ballast(workspace.root, config.disk.ballast_mb if config is not None else 0.0)
        self.overview = Overview(workspace, self.database, lambda: self.workers.attached)
        self._without_run = WITHOUT_RUN
        self._reports = WorkerReports(self.database, self.heartbeats)
        self._operations: dict[str, Callable[[Answer], Answer]] = {
            "ping": lambda request: {"pid": os.getpid()},
            "start": lambda request: self.workers.start(str(request["run"])),
            "alive": lambda request: {"alive": str(request["run"]) in self.workers.attached},
            **Catalog(workspace, self.database).operations,
            **Queueing(workspace, self.database, self.dispatcher).operations,
            **Decisions(workspace, self.database, self.workers, rollbacks).operations,
            **rollbacks.operations,
        }
        self.add_operations(Maintenance(workspace, self.database).operations)
        self.add_operations(self.overview.operations)

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.database.close()

    def configure(self, config: ContinualConfig) -> None:
        """Follow a (changed) config from now on."""
        self.dispatcher.configure(config)

    def add_operations(self, operations: dict[str, Callable[[Answer], Answer]]) -> None:
        """More operations of a host that stays (its status, its end). None of them needs a run."""
        self._operations.update(operations)
        self._without_run = self._without_run | operations.keys()

    def handle(self, request: Answer) -> Answer:
        """Do one operation.

        Raises:
            ScalerError: whatever was refused; the state is then as it was.
        """
        op = request.get("op")
        if not isinstance(op, str) or op not in {*self._operations, *self._reports.operations}:
            known = ", ".join(self._operations)
            raise SpecError(f"unknown operation {str(op)[:40]!r}", f"one of {known}")
        if op not in self._without_run and not isinstance(request.get("run"), str):
            raise SpecError(f"a request {op} without a run", "the field run: a run's id")
        if op in self._reports.operations:
            return self._ballast.guard(partial(self._reports.handle, op, request))
        return self._ballast.guard(partial(self._operations[op], request))

    def reap(self) -> Decision:
        """Look after the workers: close what has ended, end what hangs. Called often by every host."""
        return self._ballast.guard(self.dispatcher.reap)

    def dispatch(self) -> Decision:
        """`reap`, take over what an earlier host left, start what may start: for a host that stays."""
        return self._ballast.guard(self.dispatcher.dispatch)
