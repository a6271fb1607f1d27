"""Carrying out what `schedule` decides: from the state as it is, to a snapshot, to starts, ends and kills."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from scaler_wizard.errors import ScalerError, WorkspaceBusyError, WrongStateError
from scaler_wizard.jobs.completion import Closing, Completion
from scaler_wizard.jobs.disk import DiskVerdict, disk_verdict
from scaler_wizard.jobs.schedule import Decision, Fail, QueuedRun, Requeue, Rules, Snapshot, decide
from scaler_wizard.jobs.watchdog import Limits
from scaler_wizard.jobs.workers import Claim, Workers, device_of
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store import queries, queue
from scaler_wizard.store.database import Database, transaction
from scaler_wizard.store.lock import is_locked
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.workspace import Workspace

log = logging.getLogger(__name__)
Answer = dict[str, Any]
T = TypeVar("T")
DISK_LOOK_SEC = 5.0


def _try(run_id: str, act: Callable[[], T]) -> T | None:
    """One job that cannot be started or closed must not keep the others from it."""
    try:
        return act()
    except (ScalerError, OSError) as error:
        log.error("run %s: %s", run_id, error)
        return None


class Dispatcher:
    """Looks and acts. `held` and `blocked` say why nothing, or nothing of a recipe, may start."""

    def __init__(
        self, workspace: Workspace, database: Database, workers: Workers, completion: Completion
    ) -> None:
        self.workspace = workspace
        self.database = database
        self.workers = workers
        self.completion = completion
        self.config: ContinualConfig | None = None
        self.limits = Limits()
        self.held: str | None = None
        self.blocked: dict[str, str] = {}
        self.waiting: tuple[tuple[str, str], ...] = ()
        self._devices: dict[str, str] = {}
        self._disk: tuple[float, DiskVerdict] = (float("-inf"), "ok")

    def configure(self, config: ContinualConfig) -> None:
        """Follow a workspace's config: retries and restarts, the watchdog's limits, the disk guard."""
        self.config = config
        rules, limits = config.queue, config.watchdog
        self.workers.rules = Rules(rules.retries, rules.restarts, rules.restart_window_sec)
        self.limits = Limits(limits.load, limits.step, limits.save, limits.stop)

    def reap(self) -> Decision:
        """Look after workers only: close what has ended, kill what hangs. Nothing is started."""
        return self._look(starting=False)

    def dispatch(self) -> Decision:
        """Also take over what an earlier host left, and start what may start."""
        self.workers.recover()
        decision = self._look(starting=True)
        self.waiting = decision.waiting
        return decision

    def _look(self, *, starting: bool) -> Decision:
        now, monotonic = time.time(), time.monotonic()
        closings = self.workers.collect(monotonic)
        try:
            decision = decide(self._snapshot(closings, monotonic, starting), now)
            claims = self._commit(closings, decision) if closings or decision.start else []
        except ScalerError:
            self.workers.take_back()
            raise
        self.workers.let_go()
        for kill in decision.kill:
            self.workers.kill(kill, monotonic)
        for claim in claims:
            _try(claim.run.id, partial(self.workers.launch, claim))
        return decision

    def _commit(self, closings: list[Closing], decision: Decision) -> list[Claim]:
        """Everything that was decided in one transaction: the end of one job and the claim of the next are
        one wait for the disk. Files, processes and the flight log follow when it is committed."""
        decided: dict[str, Requeue | Fail] = {item.run: item for item in decision.requeue}
        decided |= {item.run: item for item in decision.fail}
        # What cannot be prepared (a full disk) stays open, and `recover` closes it another time.
        tried = [_try(closing.ended.run, partial(self.completion.prepare, closing)) for closing in closings]
        closings = [closing for closing in tried if closing is not None]
        with self.database.session() as connection, transaction(connection):
            for closing in closings:
                item = decided.get(closing.ended.run)
                _try(closing.ended.run, partial(self.completion.record, connection, closing, item))
            found = [self._claim(connection, run_id) for run_id in decision.start]
        for closing in closings:
            item = decided.get(closing.ended.run)
            _try(closing.ended.run, partial(self.completion.follow, closing, item))
        return [claim for claim in found if claim is not None]

    def _claim(self, connection: Connection, run_id: str) -> Claim | None:
        """Take a run; one that can never start (its directory is gone) fails, so that the next one may."""
        try:
            return self.workers.claim(run_id)
        except (WorkspaceBusyError, WrongStateError) as error:
            log.info("run %s waits: %s", run_id, error)
        except ScalerError as error:
            queries.set_status(
                connection, run_id, RunStatus.FAILED, time.time(), error=str(error), advice=error.todo
            )
        return None

    def _snapshot(self, closings: list[Closing], monotonic: float, starting: bool) -> Snapshot:
        ended = tuple(closing.ended for closing in closings)
        living = tuple(self.workers.live(monotonic))
        if not starting:
            return Snapshot(workers=living, ended=ended, rules=self.workers.rules, limits=self.limits)
        with self.database.session() as connection:
            waiting = queue.queued(connection)
            paused = queries.list_runs(connection, frozenset({RunStatus.PAUSED}))
        queued = tuple(
            QueuedRun(
                run.id, run.recipe, run.priority, run.created, self._device(run.id), run.lineage,
                run.not_before,
            )
            for run in waiting
        )  # fmt: skip
        devices = {run.device for run in queued}
        return Snapshot(
            queued=queued, workers=living, ended=ended,
            paused_lineages=frozenset(run.lineage for run in paused if run.lineage),
            busy_devices=frozenset(name for name in devices if is_locked(self.workspace.device_lock(name))),
            blocked=dict(self.blocked), held=self.held, disk=self._disk_verdict(monotonic),
            rules=self.workers.rules, limits=self.limits,
        )  # fmt: skip

    def _device(self, run_id: str) -> str:
        if run_id not in self._devices:
            try:
                self._devices[run_id] = device_of(self.workspace.run_dir(run_id))
            except ScalerError:
                return "cpu"  # its plan is damaged or gone: starting it says so
        return self._devices[run_id]

    def _disk_verdict(self, monotonic: float) -> DiskVerdict:
        if self.config is None:
            return "ok"
        if monotonic - self._disk[0] > DISK_LOOK_SEC:
            free = shutil.disk_usage(self.workspace.root).free
            self._disk = (monotonic, disk_verdict(free, self.config.disk))
        return self._disk[1]
