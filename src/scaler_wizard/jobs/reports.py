"""What a worker reports to its host: progress, phases, gates; and what it is told in answer.

Every report carries the attempt's number, the fencing token: a worker that was taken for dead and replaced
is told so ("fenced") and writes nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from scaler_wizard.errors import WrongStateError
from scaler_wizard.jobs.heartbeats import Heartbeats
from scaler_wizard.jobs.watchdog import ACTIVITIES, Activity
from scaler_wizard.store import attempts, commands, gates, phases, queries
from scaler_wizard.store.database import Database, transaction
from scaler_wizard.store.states import Command, RunStatus

Answer = dict[str, Any]
# A worker knows three requests; what they mean for the run afterwards is the host's business.
TOLD = {Command.STOP: "abort", Command.SKIP: "abort"}


class WorkerReports:
    """The worker's half of the host's operations."""

    def __init__(self, database: Database, heartbeats: Heartbeats) -> None:
        self.database = database
        self.heartbeats = heartbeats
        self.operations: dict[str, Callable[[Answer], Answer]] = {
            "beat": self._beat,
            "activity": self._activity,
            "phase_started": self._phase_started,
            "phase_done": self._phase_done,
            "gate_opened": self._gate_opened,
            "gate_poll": self._gate_poll,
            "gate_closed": self._gate_closed,
            "ended": lambda request: {},
        }

    def handle(self, op: str, request: Answer) -> Answer:
        """Do one operation; a stale attempt gets {"fenced": true} instead of an answer."""
        try:
            return self.operations[op](request)
        except WrongStateError as error:
            return {"fenced": self._is_stale(request), **error.as_dict()}

    def _is_stale(self, request: Answer) -> bool:
        with self.database.session() as connection:
            newest = attempts.latest_attempt(connection, str(request["run"]))
        return newest is None or newest.number != request["token"] or newest.ended is not None

    def _note(self, connection: Connection, run: str, token: int, activity: Activity | None = None) -> None:
        """A sign of progress of an attempt that may still give one."""
        attempts.check_attempt(connection, run, token)
        now = time.monotonic()
        if self.heartbeats.note(run, token, now, activity):
            attempts.report_heartbeat(connection, run, token, now)

    def _beat(self, request: Answer) -> Answer:
        """One step done: progress, and what a person asked for since the last one."""
        run, token = str(request["run"]), int(request["token"])
        with self.database.session() as connection, transaction(connection):
            self._note(connection, run, token, "step")
            self._set_running(connection, run, token)
            asked = commands.pending_commands(connection, run)
        if not asked:
            return {}
        # Told again at each step until the attempt has ended: a host that dies between its commit and its
        # answer must not lose what a person asked for. Every request ends the worker, so it acts once.
        self.heartbeats.note(run, token, time.monotonic(), "stop")
        action = TOLD.get(asked[0].action, str(asked[0].action))
        return {
            "command": {
                "action": action, "reason": asked[0].reason, "target_phase": asked[0].target_phase
            }
        }  # fmt: skip

    def _activity(self, request: Answer) -> Answer:
        """The worker turns to something else: {activity}. It is told nothing here."""
        activity: Activity = next((word for word in ACTIVITIES if word == request.get("activity")), "step")
        with self.database.session() as connection, transaction(connection):
            self._note(connection, str(request["run"]), int(request["token"]), activity)
        return {}

    def _set_running(self, connection: Connection, run: str, token: int) -> None:
        if queries.get_run(connection, run).status == RunStatus.INITIALIZING:
            queries.set_status(connection, run, RunStatus.RUNNING, time.time(), token=token)

    def _phase_started(self, request: Answer) -> Answer:
        run, token = str(request["run"]), int(request["token"])
        with self.database.session() as connection, transaction(connection):
            self._note(connection, run, token, "step")
            self._set_running(connection, run, token)
            phases.start_phase(connection, run, token, str(request["phase"]), time.time())
        return {}

    def _phase_done(self, request: Answer) -> Answer:
        run, token = str(request["run"]), int(request["token"])
        with self.database.session() as connection, transaction(connection):
            self._note(connection, run, token, "step")
            phases.finish_phase(
                connection, run, token, str(request["phase"]), "done", time.time(),
                str(request["checkpoint"]), request["metrics"],
            )  # fmt: skip
        return {}

    def _gate_opened(self, request: Answer) -> Answer:
        run, token = str(request["run"]), int(request["token"])
        with self.database.session() as connection, transaction(connection):
            self._note(connection, run, token, "gate")
            self._set_running(connection, run, token)
            gates.open_gate(
                connection, run, token, str(request["gate"]), str(request["sentence"]),
                float(request["opened"]), float(request["deadline"]),
            )  # fmt: skip
        return {}

    def _gate_poll(self, request: Answer) -> Answer:
        """The answer to the worker's open gate, once there is one."""
        run, token = str(request["run"]), int(request["token"])
        with self.database.session() as connection, transaction(connection):
            self._note(connection, run, token, "gate")
            gate = gates.newest_gate(connection, run, str(request["gate"]))
        if gate is None or (gate.answered is not None and gate.answered < float(request["opened"])):
            # It was opened while no host was there to be told.
            self._gate_opened(request)
            return {}
        if gate.answered is None:
            return {}
        return {
            "answer": {
                "decision_id": gate.decision_id, "gate": request["gate_id"], "action": gate.action,
                "at": gate.answered, "by": gate.by, "target_phase": gate.target_phase,
            }
        }  # fmt: skip

    def _gate_closed(self, request: Answer) -> Answer:
        """Whoever answered (a person, or the run itself after the window), the gate is closed."""
        run, token = str(request["run"]), int(request["token"])
        with self.database.session() as connection, transaction(connection):
            self._note(connection, run, token, "step")
            gate = gates.newest_gate(connection, run, str(request["gate"]))
            if gate is not None and gate.answered is None:
                gates.answer_gate(
                    connection, gate.id, request["action"], str(request["by"] or "nobody"),
                    str(request["reason"]), uuid.uuid4().hex, time.time(), None,
                )  # fmt: skip
            queries.set_status(connection, run, RunStatus.RUNNING, time.time(), token=token)
        return {}
