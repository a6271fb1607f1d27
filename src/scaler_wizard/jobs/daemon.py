"""The daemon of a workspace: the host that stays, and the threads that feed it. No torch.

    main thread     signals; dispatch, status and views at each tick
    host thread     the database and the socket (`host.Host`); every change of state happens there
    inbox thread    looks, copies, hashes and checks files (`intake`), minutes long for a large one
    watch thread    waits for the system to tell of changes in the inbox
    housekeeping    snapshots, retention, backups (`housekeeping`), about twice a minute

One per workspace: the lock says who. Ending it pauses the run at work after its step, and the next daemon
goes on with it; killing it leaves its worker alone, which the next daemon takes over.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import Any

from scaler_wizard.errors import ScalerError
from scaler_wizard.jobs.consolidation import queue_consolidation
from scaler_wizard.jobs.daemon_operations import DaemonOperations
from scaler_wizard.jobs.host import Host, hosting
from scaler_wizard.jobs.housekeeping import Housekeeping
from scaler_wizard.jobs.intake import Intake
from scaler_wizard.jobs.notify import Notifier, Occasion
from scaler_wizard.jobs.standing import Standing
from scaler_wizard.jobs.status import DaemonState, changes, run_states
from scaler_wizard.jobs.views import write_views
from scaler_wizard.jobs.watching import Watcher, look_until_stopped
from scaler_wizard.specs.continual import NotifySection
from scaler_wizard.store.workspace import Workspace

log = logging.getLogger(__name__)
BUSY_TICK_SEC = 0.5
IDLE_TICK_SEC = 2.0
VIEWS_SEC = 3.0
LOG_BYTES = 5 << 20
LOG_FILES = 5
THREAD_PATIENCE_SEC = 10.0
HOUSEKEEPING_SEC = 30.0
OCCASIONS: dict[str, Occasion] = {"completed": "finished", "failed": "failed", "waiting": "gate"}
Show = Callable[[dict[str, Any]], None]
Say = Callable[[str], None]


class Daemon:
    """One life of the daemon, within `hosting`."""

    def __init__(self, workspace: Workspace, host: Host, standing: Standing, show: Show, say: Say) -> None:
        self.workspace = workspace
        self.host = host
        self.standing = standing
        self.show = show
        self.say = say
        self.started = time.time()
        self.ending = False
        self.leave_workers = False
        # A SimpleQueue, because a signal handler may ring it in the middle of anything.
        self._bell: queue.SimpleQueue[str] = queue.SimpleQueue()
        operations = DaemonOperations(host.service, standing, self)
        host.service.add_operations(operations.operations)
        host.service.overview.daemon = self.state
        self._again = operations.begin()
        self.watcher = Watcher(workspace.inbox)
        self.intake = Intake(
            workspace, host.call, lambda: standing.config, lambda: standing.problem, lambda: self.ending
        )
        self.notifier = _notifier(standing)
        self.housekeeping = Housekeeping(workspace, host.service.database, standing.config, self.notifier)
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self._busy = False
        self._known: dict[str, str] | None = None

    def state(self) -> DaemonState:
        """As it knows itself; called on the host's thread."""
        problem = self.standing.problem
        return DaemonState(
            os.getpid(), self.started, self.host.service.dispatcher.held, dict(self.intake.waiting),
            () if problem is None else (problem,),
        )  # fmt: skip

    def end(self, now: bool, why: str) -> float:
        """Begin to end; the seconds that workers are given. May be called by a signal handler."""
        self.leave_workers |= now
        self.ending = True
        self._bell.put(f"ending{' at once' if now else ''}, asked by {why}")
        return 0.0 if self.leave_workers else self.standing.config.watchdog.stop

    def run(self) -> list[str]:
        """Live until asked to end; the runs whose workers go on alone."""
        log.info("daemon %s of %s begins", os.getpid(), self.workspace.root)
        for run in self._again:
            log.info("%s goes on where it was paused with the daemon before", run)
        self.watcher.start()
        self._begin("housekeeping", self._keep_house)
        self._begin("inbox", self._look_after_inbox)
        try:
            self._tick_until_ending()
            left = self._let_go()
        finally:
            self.ending = True
            self._ended.set()
            self.watcher.stop()
            for thread in self._threads:
                thread.join(THREAD_PATIENCE_SEC)
            self.watcher.join(THREAD_PATIENCE_SEC)
            self.notifier.close()
        self._write_views()
        log.info("daemon %s ends%s", os.getpid(), f"; alive: {', '.join(left)}" if left else "")
        return left

    def _begin(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _tick_until_ending(self) -> None:
        views_due = 0.0
        while not self.ending:
            self._busy = self._dispatch()
            if time.monotonic() >= views_due:
                views_due = time.monotonic() + VIEWS_SEC
                self._write_views()
            self._wait(BUSY_TICK_SEC if self._busy else IDLE_TICK_SEC)

    def _wait(self, seconds: float) -> None:
        """Sleep until somebody rings, at most so long."""
        try:
            text = self._bell.get(timeout=seconds)
        except queue.Empty:
            return
        if text:
            log.info("%s", text)

    def _dispatch(self) -> bool:
        """Carry out what is decided now; whether a worker is at work."""
        try:
            return bool(self.host.call("dispatch")["busy"])
        except ScalerError as error:
            # A locked or full database: tried again at the next tick.
            log.error("dispatch: %s", error)
            return False

    def _look_after_inbox(self) -> None:
        try:
            self.intake.tidy()
        except (ScalerError, OSError) as error:
            log.error("what an earlier daemon left could not be tidied: %s", error)
        look_until_stopped(self.watcher, self._look, self._poll_interval)

    def _look(self) -> float | None:
        look = self.intake.look()
        if look.take:
            self._bell.put("")
        return look.next_look

    def _keep_house(self) -> None:
        while not self._ended.wait(HOUSEKEEPING_SEC):
            self.housekeeping.config = self.standing.config
            for done in self.housekeeping.tick(time.time(), not self._busy):
                log.info("housekeeping: %s", done)
            if self.housekeeping.wants_consolidation and self.standing.problem is None:
                self._ask_for_merge()

    def _ask_for_merge(self) -> None:
        try:
            queued = queue_consolidation(self.workspace, self.standing.config, self.host.call)
            log.info("housekeeping: %s queued: it merges version %d", queued.run, queued.version)
        except (ScalerError, OSError) as error:
            log.error("housekeeping: the adapter cannot be merged: %s", error)

    def _poll_interval(self) -> float:
        return self.standing.config.queue.poll_interval

    def _write_views(self) -> None:
        try:
            status = self.host.call("status")
            write_views(self.workspace, status)
        except (ScalerError, OSError) as error:
            log.error("the status could not be written: %s", error)
            return
        self.show(status)
        states = run_states(status)
        for run, state in changes(self._known, states):
            log.info("%s: %s", run, state)
            self.say(f"{run}: {state}")
            if state in OCCASIONS:
                self.notifier.send(OCCASIONS[state], f"Scaler Wizard: {run} {state}", _details(status, run))
        self._known = states

    def _let_go(self) -> list[str]:
        """Ask workers to save and leave, within the watchdog's limit; who is still at work then."""
        if not self.leave_workers:
            self.host.call("pause_workers")
        until = time.monotonic() + self.standing.config.watchdog.stop
        while running := list(self.host.call("workers")["runs"]):
            if self.leave_workers or time.monotonic() > until:
                return running
            self._wait(0.1)
        return []


def _notifier(standing: Standing) -> Notifier:
    """Who is told. An address that cannot be used costs the messages, never the daemon."""
    try:
        return Notifier(standing.config.notify)
    except ScalerError as error:
        log.error("nobody is notified: %s", error)
        return Notifier(NotifySection())


def _details(status: dict[str, Any], run: str) -> str:
    row: dict[str, Any] = next((one for one in status["recent"] if one["shown"] == run), {})
    return " ".join(str(row[key]) for key in ("error", "advice") if row.get(key)) or run


def run_daemon(workspace: Workspace, show: Show, say: Say) -> list[str]:
    """Be the daemon until a signal or `daemon_stop` ends it; the runs whose workers go on alone.

    Raises:
        SpecError: no config, or not one.
        WorkspaceBusyError: the workspace has an owner; names its process id.
    """
    standing = Standing.open(workspace)
    with hosting(workspace, standing.config) as host, _logging(workspace.logs / "daemon.log"):
        daemon = Daemon(workspace, host, standing, show, say)
        with _signals(daemon):
            return daemon.run()


@contextmanager
def _signals(daemon: Daemon) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the daemon; a second one leaves workers alone."""

    def ask(number: int, frame: FrameType | None) -> None:
        daemon.end(daemon.ending, signal.Signals(number).name)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logging(path: Path) -> Iterator[None]:
    """Everything from INFO up into a rotated file: at most 6 times 5 MiB."""
    handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("scaler_wizard")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
