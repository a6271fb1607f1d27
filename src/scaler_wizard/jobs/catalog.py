"""Runs and models as they are listed and shown, and how a run comes into being."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from scaler_wizard.errors import SpecError
from scaler_wizard.planning.plan import Plan
from scaler_wizard.safety.contract import check_job, job_hash
from scaler_wizard.specs.job import Job, parse_job
from scaler_wizard.store import attempts, flightlog, gates, phases, queries, queue, registry
from scaler_wizard.store.database import Database, transaction
from scaler_wizard.store.lock import is_locked
from scaler_wizard.store.records import NewRun, Run
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import ACTIVE, RunStatus
from scaler_wizard.store.workspace import Workspace

Answer = dict[str, Any]


class Catalog:
    """Creates, lists and shows."""

    def __init__(self, workspace: Workspace, database: Database) -> None:
        self.workspace = workspace
        self.database = database
        self.operations: dict[str, Callable[[Answer], Answer]] = {
            "create": self._create,
            "enqueue": self._enqueue,
            "runs": self._runs,
            "show": self._show,
            "models": self._models,
        }

    def _create(self, request: Answer) -> Answer:
        """Queue a signed job in a run directory made for it: {job, plan} -> {run}."""
        job = parse_job(request.get("job"))
        check_job(job)
        plan = _plan(job, request.get("plan"))
        return self._file(self.workspace.new_run_dir(job.name), job, plan, request)

    def _enqueue(self, request: Answer) -> Answer:
        """Queue a signed job whose run directory is made already (it holds the job's input).

        {run, job, plan, priority: high|normal|low, dedup_key, lineage, not_before, failed: {error, advice}}
        -> {run, duplicate}. With `failed` it is entered as failed at once: input that cannot be used. A
        duplicate is not queued: the answer names the run that is there, and the directory stays the caller's.
        """
        run_dir = self.workspace.run_dir(str(request["run"]))
        job = parse_job(request.get("job"))
        check_job(job)
        return self._file(run_dir, job, _plan(job, request.get("plan")), request)

    def _file(self, run_dir: RunDir, job: Job, plan: Answer | None, request: Answer) -> Answer:
        signed = check_job(job)
        values = job.model_dump(mode="json", by_alias=True)
        run_dir.write_job(values)
        if plan is not None:
            run_dir.write_plan(plan)
        new = NewRun(
            run_dir.id, run_dir.identity().uuid, job.name, job.recipe, values, job_hash(job), signed.hash,
            _priority(request.get("priority")), float(request.get("not_before") or 0.0),
            _word(request.get("dedup_key")), _word(request.get("lineage")),
        )  # fmt: skip
        now = time.time()
        with self.database.session() as connection, transaction(connection):
            run, is_new = queue.enqueue(connection, new, now)
            failed = request.get("failed")
            if is_new and isinstance(failed, dict):
                queries.set_status(
                    connection, run.id, RunStatus.FAILED, now, error=str(failed.get("error")),
                    advice=str(failed.get("advice") or ""),
                )  # fmt: skip
        if is_new:
            flightlog.append(
                self.workspace.flight_log, "signature", run.id,
                {"contract": signed.hash, "authorized_by": signed.contract.authorized_by},
            )  # fmt: skip
        return {"run": run.id, "duplicate": not is_new}

    def _runs(self, request: Answer) -> Answer:
        with self.database.session() as connection:
            return {"runs": [self._row(run) for run in queries.list_runs(connection)]}

    def _show(self, request: Answer) -> Answer:
        run_dir = self.workspace.run_dir(str(request["run"]))
        with self.database.session() as connection:
            run = queries.get_run(connection, run_dir.id)
            steps = phases.list_phases(connection, run.id)
            waiting = gates.open_gates(connection, run.id)
            history = queries.run_history(connection, run.id)
            tried = attempts.list_attempts(connection, run.id)
        return {
            **self._row(run),
            "path": str(run_dir.path),
            "phases": [asdict(phase) for phase in steps],
            "open_gates": [asdict(gate) for gate in waiting],
            "history": [asdict(event) for event in history],
            "attempts": [asdict(attempt) for attempt in tried],
            "job": dict(run.job),
        }

    def _row(self, run: Run) -> Answer:
        dead = run.status in ACTIVE and not is_locked(self.workspace.runs / run.id / "run.lock")
        return {
            "run": run.id, "uuid": run.uuid, "recipe": run.recipe, "phase": run.phase,
            "status": "interrupted" if dead else str(run.status),
            "priority": queue.priority_word(run.priority), "lineage": run.lineage, "retries": run.retries,
            "not_before": run.not_before, "created": run.created, "updated": run.updated,
            "error": run.error, "advice": run.advice,
        }  # fmt: skip

    def _models(self, request: Answer) -> Answer:
        with self.database.session() as connection:
            return {"models": [asdict(model) for model in registry.list_models(connection)]}


def _plan(job: Job, value: object) -> Answer | None:
    """The plan as it is written beside the job. A file of a continual model may come without one."""
    if job.recipe == "continual" and value is None:
        return None
    return Plan.from_dict(value).as_dict()


def _priority(value: object) -> int:
    word = "normal" if value is None else value
    if not isinstance(word, str) or word not in queue.PRIORITIES:
        raise SpecError(f"priority {str(value)[:40]!r}", f"one of {', '.join(queue.PRIORITIES)}")
    return queue.PRIORITIES[word]


def _word(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= 80:
        raise SpecError(f"a key of {str(value)[:40]!r}", "1 to 80 characters")
    return value
