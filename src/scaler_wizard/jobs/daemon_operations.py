"""What only a daemon answers: its tick, its inbox's rows, its pause and its end. All on the host's thread.

A pause of the queue, and the pause of runs that comes with it or with the daemon's end, belong to this one
life of the daemon: they are lifted at the next start. A run that a person paused by its name stays paused.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol, cast, get_args

from scaler_wizard.errors import ScalerError, SpecError
from scaler_wizard.jobs.maintenance import refused_changes
from scaler_wizard.jobs.service import Service
from scaler_wizard.jobs.standing import Standing
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.specs.job import LINEAGE_RECIPES
from scaler_wizard.store import inbox_files, queries, queue
from scaler_wizard.store.inbox_files import InboxFile, Sighted
from scaler_wizard.store.states import RunStatus

Answer = dict[str, Any]
QUEUE_PAUSED = "the queue was paused"
DAEMON_ENDED = "the daemon ended"


class Ending(Protocol):
    """What can be asked of the daemon itself."""

    def end(self, now: bool, why: str) -> float:
        """Begin to end; the seconds it may take."""


class DaemonOperations:
    """See the module; added to a service's operations by the daemon."""

    def __init__(self, service: Service, standing: Standing, daemon: Ending) -> None:
        self.service = service
        self.standing = standing
        self.daemon = daemon
        standing.watch(self._hand_edited)
        self.operations: dict[str, Callable[[Answer], Answer]] = {
            "ping": lambda request: {"pid": os.getpid(), "daemon": True},
            "dispatch": self._dispatch,
            "workers": lambda request: {"runs": sorted(service.workers.attached)},
            "pause_queue": self._pause_queue,
            "resume_queue": self._resume_queue,
            "pause_workers": self._pause_workers,
            "daemon_stop": self._stop,
            "inbox_known": self._known,
            "inbox_same": self._same,
            "inbox_seen": self._seen,
        }

    def begin(self) -> list[str]:
        """Lift what the daemon before had paused; the runs that go on."""
        return self._lift(QUEUE_PAUSED) + self._lift(DAEMON_ENDED)

    def _hand_edited(self, config: ContinualConfig) -> str | None:
        """Why nothing is learned under a config: a locked key was changed by hand. None where none was."""
        with self.service.database.session() as connection:
            changed = refused_changes(connection, self.service.workspace, config)
        if not changed:
            return None
        item = changed[0]
        return (
            f"{item.key} is locked since the first run and was changed by hand from {item.before} to "
            f"{item.after}; put it back, or say that you mean it: "
            f"`scaler config set {item.key} {item.after} --unlock --reason TEXT`"
        )

    def _dispatch(self, request: Answer) -> Answer:
        """{} -> {busy}: follow the config, then look after workers and start what may start."""
        if self.standing.refresh():
            self.service.configure(self.standing.config)
        problem = self.standing.problem
        self.service.dispatcher.blocked = {} if problem is None else dict.fromkeys(LINEAGE_RECIPES, problem)
        self.service.dispatch()
        return {"busy": bool(self.service.workers.attached)}

    def _pause_queue(self, request: Answer) -> Answer:
        """{by, reason} -> {message}: nothing is started, and what is at work is saved and waits."""
        reason = str(request.get("reason") or "")
        self.service.handle({"op": "hold", "by": request.get("by"), "reason": reason})
        asked = self._pause_attached(request, f"{QUEUE_PAUSED}: {reason}".removesuffix(": "))
        also = f"; {', '.join(asked)} stops after its step" if asked else ""
        return {"message": f"the queue is paused{also}; `scaler resume` goes on", "runs": asked}

    def _resume_queue(self, request: Answer) -> Answer:
        """{} -> {message}: what `pause_queue` paused goes on at its very next batch, then the queue."""
        self.service.handle({"op": "release"})
        again = self._lift(QUEUE_PAUSED)
        also = f"; {', '.join(again)} goes on" if again else ""
        return {"message": f"the queue goes on{also}", "runs": again}

    def _pause_workers(self, request: Answer) -> Answer:
        """{} -> {runs}: the daemon ends; what is at work is saved and goes on at the next start."""
        self.service.handle({"op": "hold", "by": "the daemon", "reason": "it ends"})
        return {"runs": self._pause_attached(request, DAEMON_ENDED)}

    def _pause_attached(self, request: Answer, reason: str) -> list[str]:
        asked = []
        for run in sorted(self.service.workers.attached):
            command = {
                "op": "command", "run": run, "action": "pause", "reason": reason,
                "by": request.get("by") or "the daemon", "decision_id": uuid.uuid4().hex,
            }  # fmt: skip
            try:
                self.service.handle(command)
                asked.append(run)
            except ScalerError:
                continue  # it is ending already
        return asked

    def _lift(self, reason: str) -> list[str]:
        """Queue again what was paused for this reason, not by a person's word about the run."""
        now = time.time()
        with self.service.database.session() as connection:
            paused = queries.list_runs(connection, frozenset({RunStatus.PAUSED}))
            mine = [run for run in reversed(paused) if (run.error or "").startswith(reason)]
            for run in mine:
                queue.requeue(connection, run.id, now, why="")
        return [run.id for run in mine]

    def _stop(self, request: Answer) -> Answer:
        """{now, by, reason} -> {seconds}: the daemon begins to end and may take so long."""
        why = f"{str(request.get('by') or 'a person')[:255]}: {str(request.get('reason') or '')[:2000]}"
        return {"seconds": self.daemon.end(bool(request.get("now")), why.removesuffix(": "))}

    # The inbox

    def _known(self, request: Answer) -> Answer:
        """{} -> {keys: of every file seen, runs: every run that was queued}."""
        with self.service.database.session() as connection:
            return {
                "keys": inbox_files.known_keys(connection), "runs": inbox_files.queued_runs(connection)
            }  # fmt: skip

    def _same(self, request: Answer) -> Answer:
        """{dedup_key} -> {run}: who has the same content, or null."""
        with self.service.database.session() as connection:
            found = queue.find_same(connection, str(request.get("dedup_key")))
        return {"run": found.id if found else None}

    def _seen(self, request: Answer) -> Answer:
        """{key, name, outcome, of_run, sha256, note, checked} -> {}: noted once, however often it is said."""
        outcome = request.get("outcome")
        if outcome not in get_args(Sighted):
            known = ", ".join(get_args(Sighted))
            raise SpecError(f"unknown outcome {str(outcome)[:40]!r}", f"one of {known}")
        run = None if request.get("of_run") is None else str(request["of_run"])
        sha256 = None if request.get("sha256") is None else str(request["sha256"])
        now, note = time.time(), str(request.get("note") or "")[:2000]
        word = cast(Sighted, outcome)
        file = InboxFile(str(request["key"]), str(request["name"])[:500], word, run, sha256, note, now)
        with self.service.database.session() as connection:
            if inbox_files.record(connection, file) and run is not None:
                data = {"file": file.name, "outcome": outcome, "note": note, **(request.get("checked") or {})}
                queries.log_event(connection, run, now, "inbox", data)
        return {}
