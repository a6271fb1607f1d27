"""What a person asks of a run: at its gate, of its living worker, or of a run that nobody works on."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection

from scaler_wizard.errors import SpecError, WrongStateError
from scaler_wizard.jobs.rollbacks import Rollbacks
from scaler_wizard.jobs.workers import Workers
from scaler_wizard.store import commands, gates, queries, queue
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.database import Database, transaction
from scaler_wizard.store.lock import is_locked
from scaler_wizard.store.records import GateAction, Run
from scaler_wizard.store.states import Command, RunStatus, check_command
from scaler_wizard.store.workspace import Workspace

Answer = dict[str, Any]
ACTIONS = {"approve", "abort", "pause", "rollback", "skip", "resume"}


@dataclass(frozen=True)
class Asked:
    """One request of a person."""

    action: str
    by: str
    reason: str
    decision: str
    """Its id: the same one again is the same request."""
    target: str | None


class Decisions:
    """Carries them out, each decision once."""

    def __init__(
        self, workspace: Workspace, database: Database, workers: Workers, rollbacks: Rollbacks
    ) -> None:
        self.workspace = workspace
        self.database = database
        self.workers = workers
        self.rollbacks = rollbacks
        # Answers given while this host lives, by decision id: the same one again gets the same answer.
        self._decided: dict[str, Answer] = {}
        self.operations: dict[str, Callable[[Answer], Answer]] = {"command": self._command}

    def _command(self, request: Answer) -> Answer:
        """{run, action, by, reason, target_phase, decision_id} -> {message}."""
        decision = str(request.get("decision_id") or uuid.uuid4().hex)
        if decision not in self._decided:
            self._decided[decision] = self._act(request, decision)
        return self._decided[decision]

    def _act(self, request: Answer, decision: str) -> Answer:
        run_dir = self.workspace.run_dir(str(request["run"]))
        if str(request.get("action")) not in ACTIONS:
            raise SpecError(
                f"unknown action {str(request.get('action'))[:40]!r}",
                f"one of {', '.join(sorted(ACTIONS))}",
            )
        asked = Asked(
            str(request["action"]), str(request.get("by") or "a person")[:255],
            str(request.get("reason") or "")[:2000], decision,
            None if request.get("target_phase") is None else str(request["target_phase"]),
        )  # fmt: skip
        if asked.action == "rollback" and asked.target is not None:
            CheckpointStore(run_dir).checkpoint(asked.target)
        with self.database.session() as connection:
            run = queries.get_run(connection, run_dir.id)
            if is_locked(run_dir.lock):
                return self._ask_worker(connection, run, asked)
            self.workers.settle_dead(run)
            run = queries.get_run(connection, run.id)
            return self._without_worker(connection, run, asked)

    def _ask_worker(self, connection: Connection, run: Run, asked: Asked) -> Answer:
        """The worker hears it within a step, or at the gate where it waits."""
        open_gates = gates.open_gates(connection, run.id)
        gate = open_gates[-1] if run.status == RunStatus.WAITING and open_gates else None
        if gate is None and asked.action == "approve":
            # Filed as a command it would reach the worker long after the gate it was meant for.
            raise WrongStateError(
                f"run {run.id} is {run.status} and no gate is open", "a run that waits at a gate",
                f"look at it with `scaler runs show {run.id}`",
            )  # fmt: skip
        if gate is None or asked.action == "skip":
            command = Command.STOP if asked.action == "abort" else Command(asked.action)
            commands.add_command(connection, run.id, command, time.time(), asked.target, asked.reason)
        if gate is None:
            said = "stop" if asked.action == "abort" else asked.action
            return {"message": f"{said}: sent to {run.id}; it acts at its next step"}
        # At a gate the worker listens for the gate's answer only.
        answer = "abort" if asked.action == "skip" else asked.action
        gates.answer_gate(
            connection, gate.id, cast(GateAction, answer), asked.by, asked.reason, asked.decision,
            time.time(), asked.target,
        )  # fmt: skip
        return {"message": f"{asked.action}: noted for gate {gate.gate} of {run.id}"}

    def _check_resumable(self, run: Run) -> None:
        """A file that failed its check has no plan; queued again, it would hold up its lineage."""
        if self.workspace.run_dir(run.id).plan() is None:
            raise WrongStateError(
                f"run {run.id} failed before it was planned: {run.error or 'no reason is known'}",
                "a run that has begun", run.advice or "mend its file or its job, and give it again",
            )  # fmt: skip

    def _without_worker(self, connection: Connection, run: Run, asked: Asked) -> Answer:
        now = time.time()
        if asked.action == "rollback":
            result = self.rollbacks.roll_back(run.id, asked.target, asked.by)
            return {
                "message": result.message,
                "seconds": result.seconds,
                "checkpoint": result.checkpoint.name,
            }
        if asked.action == "skip":
            queue.skip(connection, run.id, now, asked.reason, asked.by)
            return {"message": f"{run.id} is skipped; everything committed stays"}
        status = {"abort": RunStatus.STOPPED, "pause": RunStatus.PAUSED, "resume": RunStatus.QUEUED}
        if (asked.action == "pause" and run.status != RunStatus.QUEUED) or asked.action not in status:
            again = f"`scaler resume {run.id}` continues it and asks at the gate again"
            raise WrongStateError(
                f"run {run.id} is {run.status} and no worker is running", "a running run",
                "nothing: its result stays" if run.status == RunStatus.COMPLETED else again,
            )  # fmt: skip
        if asked.action == "resume" and run.status == RunStatus.FAILED:
            self._check_resumable(run)
        with transaction(connection):
            if asked.action == "resume":
                check_command(run.id, run.status, Command.RESUME)
                queue.requeue(connection, run.id, now, why="", retries=0)
            else:
                queries.set_status(connection, run.id, status[asked.action], now, error=asked.reason or None)
            said = {"action": asked.action, "by": asked.by, "reason": asked.reason}
            queries.log_event(connection, run.id, now, "command", said)
        place = {"abort": "stopped", "pause": "paused", "resume": "in the queue"}[asked.action]
        return {"message": f"{run.id} is {place}; everything committed stays"}
