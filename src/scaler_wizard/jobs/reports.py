"""What a worker reports to its host: progress, phases, gates; and what it is told in answer.

Every report carries the attempt's number, the fencing token: a worker that was taken for dead and replaced
is told so ("fenced") and writes nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from scaler_wizard.errors import WrongStateError
from scaler_wizard.store import queries
from scaler_wizard.store.database import Database
from scaler_wizard.store.states import Command, RunStatus

Answer = dict[str, Any]


class WorkerReports:
    """The worker's half of the host's operations."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.operations: dict[str, Callable[[Answer], Answer]] = {
            "beat": self._beat,
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
            newest = queries.latest_attempt(connection, str(request["run"]))
        return newest is None or newest.number != request["token"] or newest.ended is not None

    def _beat(self, request: Answer) -> Answer:
        run, token = str(request["run"]), int(request["token"])
        with self.database.session() as connection:
            queries.report_heartbeat(connection, run, token, time.monotonic())
            self._set_running(connection, run, token)
            for command in queries.pending_commands(connection, run):
                if queries.consume_command(connection, command.id, time.time()):
                    action = "abort" if command.action == Command.STOP else str(command.action)
                    return {
                        "command": {
                            "action": action, "reason": command.reason, "target_phase": command.target_phase
                        }
                    }  # fmt: skip
        return {}

    def _set_running(self, connection: Any, run: str, token: int) -> None:
        if queries.get_run(connection, run).status == RunStatus.INITIALIZING:
            queries.set_status(connection, run, RunStatus.RUNNING, time.time(), token=token)

    def _phase_started(self, request: Answer) -> Answer:
        run, token = str(request["run"]), int(request["token"])
        with self.database.session() as connection:
            self._set_running(connection, run, token)
            queries.start_phase(connection, run, token, str(request["phase"]), time.time())
        return {}

    def _phase_done(self, request: Answer) -> Answer:
        with self.database.session() as connection:
            queries.finish_phase(
                connection, str(request["run"]), int(request["token"]), str(request["phase"]), "done",
                time.time(), str(request["checkpoint"]), request["metrics"],
            )  # fmt: skip
        return {}

    def _gate_opened(self, request: Answer) -> Answer:
        run, token = str(request["run"]), int(request["token"])
        with self.database.session() as connection:
            self._set_running(connection, run, token)
            queries.open_gate(
                connection, run, token, str(request["gate"]), str(request["sentence"]),
                float(request["opened"]), float(request["deadline"]),
            )  # fmt: skip
        return {}

    def _gate_poll(self, request: Answer) -> Answer:
        """The answer to the worker's open gate, once there is one."""
        run, token = str(request["run"]), int(request["token"])
        with self.database.session() as connection:
            queries.report_heartbeat(connection, run, token, time.monotonic())
            gate = queries.newest_gate(connection, run, str(request["gate"]))
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
        with self.database.session() as connection:
            gate = queries.newest_gate(connection, run, str(request["gate"]))
            if gate is not None and gate.answered is None:
                queries.answer_gate(
                    connection, gate.id, request["action"], str(request["by"] or "nobody"),
                    str(request["reason"]), uuid.uuid4().hex, time.time(), None,
                )  # fmt: skip
            queries.set_status(connection, run, RunStatus.RUNNING, time.time(), token=token)
        return {}
