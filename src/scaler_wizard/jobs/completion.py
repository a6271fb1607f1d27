"""The end of an attempt in the database: what the worker committed, how it ended, what it made.

Everything here may be done twice: a host that dies between two commits finds the run still active at its
next start, reads the same exit status and does it again.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import Connection

from scaler_wizard.errors import CheckpointError, ScalerError
from scaler_wizard.jobs import lineage
from scaler_wizard.jobs.process import Ending
from scaler_wizard.jobs.rollbacks import Rollbacks
from scaler_wizard.jobs.schedule import ADVANCED, GAVE_UP, INTERRUPTED, REBOOTED, EndedWorker, Fail, Requeue
from scaler_wizard.jobs.staging import Staging
from scaler_wizard.store import attempts, commands, flightlog, gates, phases, queries, queue, registry
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.database import Database, transaction
from scaler_wizard.store.durable import is_disk_full
from scaler_wizard.store.lock import boot_id
from scaler_wizard.store.records import Attempt
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import Command, RunStatus
from scaler_wizard.store.workspace import Workspace

log = logging.getLogger(__name__)
ENDED = {
    "completed": RunStatus.COMPLETED,
    "paused": RunStatus.PAUSED,
    "stopped": RunStatus.STOPPED,
    "failed": RunStatus.FAILED,
}
WISHES = {
    Command.SKIP: RunStatus.SKIPPED,
    Command.STOP: RunStatus.STOPPED,
    Command.PAUSE: RunStatus.PAUSED,
}
"""What a person asked of a worker that ended before, or without, acting on it."""


@dataclass(frozen=True)
class Closing:
    """A worker that has ended: how, and what `schedule` is to know of it."""

    attempt: Attempt
    ending: Ending
    ended: EndedWorker
    staging: Staging | None = None
    """What it made, laid ready; None where it did not complete."""

    @property
    def is_ready(self) -> bool:
        """Whether it can be recorded without a long wait."""
        return self.staging is None or not self.staging.is_running


class Completion:
    """Closes attempts."""

    def __init__(self, workspace: Workspace, database: Database, rollbacks: Rollbacks) -> None:
        self.workspace = workspace
        self.database = database
        self.rollbacks = rollbacks

    def close(self, closing: Closing, decided: Requeue | Fail | None) -> None:
        """Close one attempt as `schedule.settle` decided, in one go: of a run that an earlier host left."""
        closing = self.prepare(closing)
        with self.database.session() as connection:
            self.record(connection, closing, decided)
        self.follow(closing, decided)

    def stage(self, closing: Closing) -> Closing:
        """Begin to hash and lay ready what a completed run made; `prepare` follows when it `is_ready`."""
        if closing.ending.status != "completed":
            return closing
        staging = Staging(self.workspace, self.workspace.run_dir(closing.attempt.run_id))
        staging.start()
        return replace(closing, staging=staging)

    def prepare(self, closing: Closing) -> Closing:
        """Register and publish what a completed run made, before it counts as completed: a host that dies in
        between does it again. The closing as it is to be recorded: failed, where nothing can be published.

        Raises:
            ScalerError: the disk is full: the attempt stays open, and is closed another time.
        """
        if closing.ending.status != "completed":
            return closing
        run_dir = self.workspace.run_dir(closing.attempt.run_id)
        staging = closing.staging
        if staging is None:
            staging = Staging(self.workspace, run_dir)
            staging.work()
        self._note_problems(run_dir, partial(self._register, staging))
        return self._publish(run_dir, closing, staging)

    def follow(self, closing: Closing, decided: Requeue | Fail | None) -> None:
        """What comes after the commit: the flight log, and a rollback that was asked for."""
        run_dir = self.workspace.run_dir(closing.attempt.run_id)
        ending = closing.ending
        if not ending.clean:
            flightlog.append(
                self.workspace.flight_log, "worker_died", run_dir.id,
                {"reason": ending.reason, "cause": ending.cause, "again": isinstance(decided, Requeue)},
            )  # fmt: skip
        target = ending.rollback_to
        if target is not None:
            self._note_problems(
                run_dir, lambda: self.rollbacks.roll_back(run_dir.id, target, "asked for at a gate")
            )

    def _publish(self, run_dir: RunDir, closing: Closing, staging: Staging) -> Closing:
        """Publish the version that the run made. What can never be published makes the run a failed one.

        Raises:
            ScalerError: the disk is full: the attempt stays open, and is closed another time.
        """
        try:
            if staging.failure is not None:
                raise staging.failure
            with self.database.session() as connection:
                lineage.publish(connection, self.workspace, run_dir, staging.version)
        except ScalerError as error:
            if is_disk_full(error):
                raise
            ending = replace(closing.ending, status="failed", reason=error.found, advice=error.todo)
            return replace(closing, ending=ending)
        return closing

    def record(self, connection: Connection, closing: Closing, decided: Requeue | Fail | None) -> None:
        """Phases, gates, the attempt and the run's new state: all of it or nothing."""
        with transaction(connection):
            self._record(connection, closing, decided)

    def _record(self, connection: Connection, closing: Closing, decided: Requeue | Fail | None) -> None:
        run_dir = self.workspace.run_dir(closing.attempt.run_id)
        now, attempt, ending = time.time(), closing.attempt, closing.ending
        self._catch_up(connection, run_dir, attempt.number)
        for gate in gates.open_gates(connection, run_dir.id):
            gates.answer_gate(
                connection, gate.id, "pause", "nobody", "the worker ended", uuid.uuid4().hex, now
            )
        status = ENDED[ending.status]
        wish = self._wish(connection, run_dir.id)
        if wish is not None and (not ending.clean or status in (RunStatus.STOPPED, RunStatus.FAILED)):
            status, decided = wish, None
        elif isinstance(decided, Requeue):
            status = RunStatus.QUEUED
        if (
            status == RunStatus.COMPLETED
            and queries.get_run(connection, run_dir.id).status != RunStatus.RUNNING
        ):
            queries.set_status(connection, run_dir.id, RunStatus.RUNNING, now)
        reason, advice = ending.reason, ending.advice
        if isinstance(decided, Fail):
            reason, advice = decided.reason, decided.advice
        outcome = ending.status if ending.clean else self._outcome(run_dir, attempt, decided)
        here = attempt.boot_id == boot_id()
        attempts.end_attempt(
            connection, run_dir.id, attempt.number, outcome, status, now, error=reason or None,
            advice=advice or None, monotonic=time.monotonic() if here else None,
        )  # fmt: skip
        commands.forget_commands(connection, run_dir.id, now)
        if isinstance(decided, Requeue):
            queue.requeue(
                connection, run_dir.id, now, why=decided.why, advice=decided.advice or None,
                not_before=decided.not_before, priority=decided.priority, retries=decided.retries,
            )  # fmt: skip

    def _wish(self, connection: Connection, run_id: str) -> RunStatus | None:
        """The last of what a person asked of this worker. Commands are its own: older ones are forgotten."""
        asked = [command.action for command in commands.pending_commands(connection, run_id)]
        return next((WISHES[action] for action in reversed(asked) if action in WISHES), None)

    def _outcome(self, run_dir: RunDir, attempt: Attempt, decided: Requeue | Fail | None) -> str:
        if attempt.boot_id != boot_id():
            return REBOOTED
        if isinstance(decided, Fail):
            return GAVE_UP
        store = CheckpointStore(run_dir)
        try:
            head = store.head()
            newest = head.step or head.parent
            committed = newest is not None and store.manifest(newest).created >= attempt.started
        except CheckpointError:
            committed = False
        return ADVANCED if committed else INTERRUPTED

    def _note_problems(self, run_dir: RunDir, act: Callable[[], object]) -> None:
        """The attempt is closed all the same, and the other runs' workers are still looked after."""
        try:
            act()
        except ScalerError as error:
            log.error("run %s: %s", run_dir.id, error)
            with self.database.session() as connection:
                queries.log_event(connection, run_dir.id, time.time(), "problem", {"found": str(error)})

    def _catch_up(self, connection: Connection, run_dir: RunDir, token: int) -> None:
        """Enter the phases that a worker committed while no host was there to be told."""
        known = {phase.phase: phase.checkpoint for phase in phases.list_phases(connection, run_dir.id)}
        try:
            chain = CheckpointStore(run_dir).chain()
        except CheckpointError:
            return  # resuming repairs it, or says what is lost
        for checkpoint in chain:
            if known.get(checkpoint.phase) != checkpoint.name:
                phases.start_phase(connection, run_dir.id, token, checkpoint.phase, checkpoint.created)
                phases.finish_phase(
                    connection, run_dir.id, token, checkpoint.phase, "done", checkpoint.created,
                    checkpoint.name, checkpoint.metrics,
                )  # fmt: skip

    def _register(self, staging: Staging) -> None:
        """Enter what the run exported into the registry, with its lineage."""
        if staging.problem is not None:
            raise staging.problem
        with self.database.session() as connection:
            for made in staging.models:
                registry.register(
                    connection, made.name, made.kind, made.path, time.time(), run_id=made.run_id,
                    parent=made.parent, metrics=made.metrics, sha256=made.sha256,
                )  # fmt: skip
