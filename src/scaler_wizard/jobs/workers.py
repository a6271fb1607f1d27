"""The workers of a host: started, taken over, watched, and closed in the database when they have ended.

One subprocess an attempt. The locks of the run directory and of the device say whether something of it still
lives; the database says what was decided. Whether a run is tried again is `schedule`'s decision.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from scaler_wizard.errors import ScalerError, WorkspaceBusyError
from scaler_wizard.jobs import lineage
from scaler_wizard.jobs.completion import Closing, Completion
from scaler_wizard.jobs.force import ForcedEnd
from scaler_wizard.jobs.heartbeats import Heartbeats
from scaler_wizard.jobs.memory import MemoryBound, bind_memory
from scaler_wizard.jobs.process import read_ending, start_worker
from scaler_wizard.jobs.schedule import (
    RETRY_DELAY_SEC,
    EndedWorker,
    LiveWorker,
    Rules,
    count_crashes,
    settle,
)
from scaler_wizard.jobs.sweep import Process, find_processes, is_alive, kill_all
from scaler_wizard.jobs.watchdog import Kill
from scaler_wizard.planning.plan import MEMORY_FRACTION
from scaler_wizard.store import attempts, commands, queries, queue
from scaler_wizard.store.database import Database, transaction
from scaler_wizard.store.lock import DeviceLock, RunLock, boot_id, is_locked
from scaler_wizard.store.oom_kills import oom_kills
from scaler_wizard.store.records import Host, Run
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import ACTIVE, RunStatus
from scaler_wizard.store.training_mark import note_killed
from scaler_wizard.store.workspace import Workspace

log = logging.getLogger(__name__)
Answer = dict[str, Any]
STRAY_SEC = 10.0
MEMORY_SEC = 2.0


@dataclass
class Worker:
    """A worker that this host looks after."""

    run: str
    token: int
    device: str
    lineage: str | None
    process: subprocess.Popen[bytes] | None
    """None for one that an earlier host started."""
    leader: Process | None = None
    """The adopted worker's own process, where the system shows it."""
    memory_limit: int | None = None
    bound: MemoryBound = field(default_factory=lambda: MemoryBound(None))
    kills_before: int | None = None
    """The kernel's count when it was attached; None where it was not, or the kernel does not say."""
    gone_since: float | None = None
    """Monotonic time at which it had ended while something still held its lock."""
    forced: ForcedEnd | None = None
    private_bytes: int = 0
    looked_at: float = float("-inf")
    closing: Closing | None = None
    """How it ended, while what it made is laid ready."""


@dataclass(frozen=True)
class Claim:
    """A run that is taken for a worker that is not started yet."""

    run: Run
    token: int
    device: str


class Workers:
    """All workers of one host."""

    def __init__(
        self, workspace: Workspace, database: Database, heartbeats: Heartbeats, completion: Completion
    ) -> None:
        self.workspace = workspace
        self.database = database
        self.heartbeats = heartbeats
        self.completion = completion
        self.rules = Rules()
        self.attached: dict[str, Worker] = {}
        self._collected: list[Worker] = []

    def start(self, run_id: str) -> Answer:
        """Start or take over a run's worker; only for a host that stays.

        Raises:
            WorkspaceBusyError: its device is in use, or a worker of it is still ending.
            WrongStateError: its state does not lead back to work.
        """
        run_dir = self.workspace.run_dir(run_id)
        with self.database.session() as connection:
            run = queries.get_run(connection, run_dir.id)
            if is_locked(run_dir.lock):
                return self.adopt(run)
            if run.status != RunStatus.QUEUED:
                self.settle_dead(run)
                if queries.get_run(connection, run.id).status != RunStatus.QUEUED:
                    queries.set_status(connection, run.id, RunStatus.QUEUED, time.time())
            return self.launch(self.claim(run.id))

    def claim(self, run_id: str) -> Claim:
        """Take a queued run for a worker of this host, in the database; `launch` follows.

        Raises:
            WorkspaceBusyError: its device, or its run directory, is in use.
            WrongStateError: it is not queued any more.
        """
        run_dir = self.workspace.run_dir(run_id)
        device = device_of(run_dir)
        for lock in (RunLock, DeviceLock):
            path = run_dir.lock if lock is RunLock else self.workspace.device_lock(device)
            if is_locked(path):
                lock.acquire(path).release()  # says who has it
        host = Host(socket.gethostname()[:255], os.getpid(), boot_id())
        with self.database.session() as connection, transaction(connection):
            # What was asked of an earlier worker that ended before it heard is not meant for this one.
            commands.forget_commands(connection, run_dir.id, time.time())
            attempt = attempts.start_attempt(connection, run_dir.id, host, time.time())
            return Claim(queries.get_run(connection, run_dir.id), attempt.number, device)

    def launch(self, claim: Claim) -> Answer:
        """Start the worker of a committed claim; see `_not_started` for what cannot be.

        Raises:
            WorkspaceBusyError: somebody took the device's or the run's lock in between.
            OSError: the system would not start it.
        """
        run = claim.run
        run_dir = self.workspace.run_dir(run.id)
        offline = run.job.get("dataset", {}).get("source") != "huggingface_hub"
        try:
            self._sweep(run.id)
            with self.database.session() as connection:
                lineage.note_parent(connection, self.workspace, run, run_dir)
            process = start_worker(
                run_dir, claim.token, self.workspace.root, self.workspace.socket,
                self.workspace.device_lock(claim.device), offline=offline,
            )  # fmt: skip
        except (OSError, ScalerError) as error:
            self._not_started(claim, error)
            raise
        worker = Worker(run.id, claim.token, claim.device, run.lineage, process)
        worker.kills_before = oom_kills()
        limit = memory_limit_of(run_dir)
        if limit is not None:
            worker.memory_limit = limit
            worker.bound = bind_memory(process.pid, run.id, limit)
        self.heartbeats.note(run.id, claim.token, time.monotonic(), "load")
        self.attached[run.id] = worker
        return {"attempt": claim.token, "adopted": False, "run": run.id}

    def _not_started(self, claim: Claim, error: Exception) -> None:
        """A lock that somebody took in between is waited for; anything else (no such program, no more
        processes) would only come again."""
        run_id, now = claim.run.id, time.time()
        status = RunStatus.QUEUED if isinstance(error, WorkspaceBusyError) else RunStatus.FAILED
        with self.database.session() as connection, transaction(connection):
            attempts.end_attempt(
                connection, run_id, claim.token, "not_started", status, now,
                error=f"its worker could not be started: {error}", advice=f"`scaler resume {run_id}`",
            )  # fmt: skip
            if status == RunStatus.QUEUED:
                queue.requeue(connection, run_id, now, why=str(error), not_before=now + RETRY_DELAY_SEC)

    def adopt(self, run: Run) -> Answer:
        """A worker that outlived its host goes on under this one: it reconnects by itself."""
        if run.status not in ACTIVE:
            raise WorkspaceBusyError(f"a worker of run {run.id} is still ending", "", "try again in a moment")
        with self.database.session() as connection:
            newest = attempts.latest_attempt(connection, run.id)
        token = newest.number if newest else 0
        if run.id not in self.attached:
            run_dir = self.workspace.run_dir(run.id)
            found = find_processes(run.id, self.workspace.root)
            leader = next((process for process in found if process.pid == process.session), None)
            worker = Worker(run.id, token, device_of(run_dir), run.lineage, None, leader)
            worker.memory_limit = memory_limit_of(run_dir)
            worker.kills_before = oom_kills()
            self.attached[run.id] = worker
            # Its clock starts now: what it did while nobody listened is not known.
            self.heartbeats.note(run.id, token, time.monotonic())
        return {"attempt": token, "adopted": True, "run": run.id}

    def recover(self) -> list[str]:
        """Take over, or close, what an earlier host left at work; the runs that it concerned."""
        with self.database.session() as connection:
            left = [run for run in queries.list_runs(connection, ACTIVE) if run.id not in self.attached]
        for run in left:
            try:
                if is_locked(self.workspace.runs / run.id / "run.lock"):
                    self.adopt(run)
                else:
                    self.settle_dead(run)
            except ScalerError as error:
                # Its directory is gone or damaged: the others are looked after all the same.
                log.error("run %s, left by an earlier host: %s", run.id, error)
        return [run.id for run in left]

    def live(self, now: float) -> Iterator[LiveWorker]:
        """What the watchdog is to look at; `now` on the monotonic clock."""
        for worker in self.attached.values():
            if worker.closing is not None:
                # Its version is not published yet: no other run of its lineage may start from the one before.
                yield LiveWorker(worker.run, "", "save", 0.0, worker.lineage)
                continue
            if worker.gone_since is not None:
                continue
            if worker.memory_limit is not None and now - worker.looked_at > MEMORY_SEC:
                worker.looked_at = now
                found = find_processes(worker.run, self.workspace.root)
                worker.private_bytes = sum(process.private_bytes for process in found)
            sign = self.heartbeats.of(worker.run)
            yield LiveWorker(
                worker.run, worker.device, sign.activity if sign else "load",
                now - sign.at if sign else 0.0, worker.lineage, worker.private_bytes,
                # The worker itself refuses at the contract's share; this is for when it no longer can.
                round(worker.memory_limit / MEMORY_FRACTION) if worker.memory_limit else None,
                worker.forced is not None,
            )  # fmt: skip

    def kill(self, kill: Kill, now: float) -> None:
        """Begin to end a worker by force; `collect` goes on with it."""
        worker = self.attached[kill.run]
        run_dir = self.workspace.run_dir(kill.run)
        worker.forced = ForcedEnd(run_dir, self.workspace.root, worker.token, kill, now)
        with self.database.session() as connection:
            queries.log_event(
                connection, kill.run, time.time(), "killed",
                {"attempt": worker.token, "cause": kill.cause, "why": kill.why,
                 "evidence": str(worker.forced.evidence.relative_to(run_dir.path))},
            )  # fmt: skip

    def collect(self, now: float) -> list[Closing]:
        """The workers that have ended since the last look, with nothing of them left; `now` monotonic.

        Whoever closes them says `let_go` when that is committed, or `take_back` where it could not be.
        """
        closings = []
        for worker in list(self.attached.values()):
            if worker.closing is None:
                if worker.forced is not None:
                    worker.forced.step(now)
                if not self._has_ended(worker, now):
                    continue
                try:
                    closing = self._closing(worker)
                except ScalerError as error:
                    log.error("run %s has ended, and is closed later: %s", worker.run, error)
                    continue
                worker.closing = self.completion.stage(closing) if closing is not None else None
            if worker.closing is not None and not worker.closing.is_ready:
                continue
            del self.attached[worker.run]
            self._collected.append(worker)
            if worker.closing is not None:
                closings.append(worker.closing)
        return closings

    def let_go(self) -> None:
        """What was collected is closed in the database."""
        for worker in self._collected:
            self.heartbeats.forget(worker.run)
            worker.bound.release()
        self._collected.clear()

    def take_back(self) -> None:
        """What was collected could not be closed (a full or locked database): the next look does it again."""
        for worker in self._collected:
            worker.closing = None  # staged anew: what was published halfway is recognised by its hash
            self.attached[worker.run] = worker
        self._collected.clear()

    def _has_ended(self, worker: Worker, now: float) -> bool:
        locked = is_locked(self.workspace.runs / worker.run / "run.lock")
        if worker.process is not None:
            alive = worker.process.poll() is None
        else:
            alive = is_alive(worker.leader) if worker.leader is not None else locked
        if alive:
            return False
        if not locked:
            return True
        # Its checkpoint writer may still finish a commit; what is left after that has escaped.
        if worker.gone_since is None:
            worker.gone_since = now
        if now - worker.gone_since > STRAY_SEC:
            self._sweep(worker.run)
        return False

    def _sweep(self, run_id: str) -> None:
        """No process of an ended attempt may go on: it would write beside the next one, on its device."""
        killed = kill_all(run_id, self.workspace.root)
        if killed:
            with self.database.session() as connection:
                queries.log_event(
                    connection, run_id, time.time(), "swept",
                    {"processes": [f"{process.pid}: {process.command}" for process in killed[:20]]},
                )  # fmt: skip

    def settle_dead(self, run: Run) -> None:
        """A run that looks active but has no living worker: its host died too. Close its attempt."""
        if run.status not in ACTIVE:
            return
        worker = Worker(run.id, 0, "", run.lineage, None)
        closing = self._closing(worker)
        if closing is not None:
            self.completion.close(closing, settle(closing.ended, self.rules, time.time()))

    def _closing(self, worker: Worker) -> Closing | None:
        """How the newest attempt of a run ended, if the database does not know yet."""
        run_dir = self.workspace.run_dir(worker.run)
        self._sweep(worker.run)
        with self.database.session() as connection:
            run = queries.get_run(connection, worker.run)
            earlier = attempts.list_attempts(connection, worker.run)
        if not earlier or earlier[0].ended is not None:
            return None
        newest = earlier[0]
        ending = read_ending(
            run_dir, newest.number, worker.process.returncode if worker.process else None,
            killed_for=worker.forced.kill.cause if worker.forced else "",
            killed_because=worker.forced.kill.why if worker.forced else "",
            memory_kills=_kills(worker),
        )  # fmt: skip
        if ending.cause == "oom_kill":
            # The next attempt begins with half the size. Without the note it only tries what this one did.
            with contextlib.suppress(OSError):
                note_killed(run_dir, newest.number)
        crashes = count_crashes(earlier[1:], boot_id(), time.monotonic(), self.rules.restart_window_sec)
        ended = EndedWorker(
            run.id, ending.status, ending.clean, ending.cause, ending.reason, ending.advice, run.retries,
            crashes + (newest.boot_id == boot_id()), run.lineage, ending.rollback_to is not None,
        )  # fmt: skip
        return Closing(newest, ending, ended)


def _kills(worker: Worker) -> int:
    """Processes that the kernel killed for memory while the worker was attached: of its own cgroup, where it
    has one, else of ours or of the machine."""
    if worker.bound.group is not None:
        return oom_kills(group=worker.bound.group) or 0
    now = oom_kills()
    return 0 if now is None or worker.kills_before is None else max(0, now - worker.kills_before)


def device_of(run_dir: RunDir) -> str:
    """The device that a run's plan names; "cpu" where it has none."""
    plan = run_dir.plan() or {}
    return str(plan.get("device") or "cpu")


def memory_limit_of(run_dir: RunDir) -> int | None:
    """Bytes of main memory that a run's plan allows its worker; None where it works on another device."""
    plan = run_dir.plan() or {}
    limit = plan.get("memory_limit")
    return limit if isinstance(limit, int) and limit > 0 and device_of(run_dir) == "cpu" else None
