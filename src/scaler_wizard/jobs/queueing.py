"""The queue as a person sees and changes it, and holding everything back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from scaler_wizard.errors import SpecError
from scaler_wizard.jobs.dispatch import Dispatcher
from scaler_wizard.store import queries, queue
from scaler_wizard.store.database import Database
from scaler_wizard.store.records import Run
from scaler_wizard.store.states import ACTIVE, RunStatus
from scaler_wizard.store.workspace import Workspace

Answer = dict[str, Any]
RECENT_DAYS = 7.0


class Queueing:
    """Lists, orders, skips and holds."""

    def __init__(self, workspace: Workspace, database: Database, dispatcher: Dispatcher) -> None:
        self.workspace = workspace
        self.database = database
        self.dispatcher = dispatcher
        self.operations: dict[str, Callable[[Answer], Answer]] = {
            "queue": self._queue,
            "set_priority": self._set_priority,
            "skip": self._skip,
            "clear": self._clear,
            "hold": self._hold,
            "release": self._release,
        }

    def _queue(self, request: Answer) -> Answer:
        """{days} -> {active, queued, paused, recently_completed, recently_failed, held}."""
        days = float(request.get("days") or RECENT_DAYS)
        now = time.time()
        with self.database.session() as connection:
            active = queries.list_runs(connection, ACTIVE)
            waiting = queue.queued(connection)
            paused = queries.list_runs(connection, frozenset({RunStatus.PAUSED}))
            completed = queue.recently(connection, RunStatus.COMPLETED, now, days)
            failed = queue.recently(connection, RunStatus.FAILED, now, days)
        why = dict(self.dispatcher.waiting)
        return {
            "active": [_line(run) for run in active],
            "queued": [{**_line(run), "why": why.get(run.id)} for run in waiting],
            "paused": [_line(run) for run in paused],
            "recently_completed": [_line(run) for run in completed],
            "recently_failed": [_line(run) for run in failed],
            "held": self.dispatcher.held,
        }

    def _set_priority(self, request: Answer) -> Answer:
        """{run, priority: high|normal|low} -> {message}."""
        word = request.get("priority")
        if not isinstance(word, str) or word not in queue.PRIORITIES:
            raise SpecError(f"priority {str(word)[:40]!r}", f"one of {', '.join(queue.PRIORITIES)}")
        run_id = self.workspace.run_dir(str(request["run"])).id
        with self.database.session() as connection:
            queue.set_priority(connection, run_id, queue.PRIORITIES[word], time.time())
        return {"message": f"{run_id} has priority {word}", "run": run_id}

    def _skip(self, request: Answer) -> Answer:
        """{run, reason, by} -> {message}: take one that waits out of the queue (see `command` for others)."""
        run_id = self.workspace.run_dir(str(request["run"])).id
        with self.database.session() as connection:
            queue.skip(connection, run_id, time.time(), *_said(request))
        return {"message": f"{run_id} is skipped; everything committed stays", "run": run_id}

    def _clear(self, request: Answer) -> Answer:
        """{reason, by} -> {message, runs}: take all that wait out of the queue."""
        with self.database.session() as connection:
            gone = queue.clear(connection, time.time(), *_said(request))
        return {"message": f"{len(gone)} jobs taken out of the queue", "runs": [run.id for run in gone]}

    def _hold(self, request: Answer) -> Answer:
        """{reason, by} -> {message}: start nothing until `release`. A host that starts holds nothing."""
        reason, by = _said(request)
        self.dispatcher.held = f"held by {by}" + (f": {reason}" if reason else "")
        return {"message": "nothing is started until it is released"}

    def _release(self, request: Answer) -> Answer:
        """{} -> {message}."""
        self.dispatcher.held = None
        return {"message": "jobs are started again"}


def _said(request: Answer) -> tuple[str, str]:
    """(reason, by whom)."""
    return str(request.get("reason") or "")[:2000], str(request.get("by") or "a person")[:255]


def _line(run: Run) -> Answer:
    return {
        "run": run.id, "name": run.name, "recipe": run.recipe, "status": str(run.status), "phase": run.phase,
        "priority": queue.priority_word(run.priority), "lineage": run.lineage, "retries": run.retries,
        "not_before": run.not_before, "created": run.created, "updated": run.updated, "error": run.error,
        "advice": run.advice,
    }  # fmt: skip
