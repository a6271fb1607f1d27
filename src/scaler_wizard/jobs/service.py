"""What every request to a workspace means: the only writer of its database.

`handle` takes one request (a dict with "op") and returns one answer. The host calls it for its socket,
a command without a host calls it directly under the workspace's lock; both mean the same. Decisions are
made by pure functions elsewhere (`store/states`, `safety/gates`); here they are looked up and committed.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from scaler_wizard.errors import (
    CheckpointError,
    RunNotFoundError,
    ScalerError,
    SpecError,
    WorkspaceBusyError,
    WrongStateError,
)
from scaler_wizard.jobs.maintenance import Maintenance
from scaler_wizard.jobs.process import read_ending, start_worker
from scaler_wizard.jobs.reports import WorkerReports
from scaler_wizard.planning.plan import Plan
from scaler_wizard.safety.contract import check_job, job_hash
from scaler_wizard.specs.events import RolledBack
from scaler_wizard.specs.job import parse_job
from scaler_wizard.store import flightlog, queries, registry
from scaler_wizard.store.checkpoints import CheckpointStore, RollbackResult
from scaler_wizard.store.database import Database
from scaler_wizard.store.events_file import EventWriter
from scaler_wizard.store.lock import boot_id, is_locked
from scaler_wizard.store.records import GateAction, Host, ModelKind, NewRun, Run
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import ACTIVE, Command, RunStatus
from scaler_wizard.store.workspace import Workspace

log = logging.getLogger(__name__)
Answer = dict[str, Any]
EXPORT_KINDS: tuple[ModelKind, ...] = ("adapter", "merged")
GATE_ACTIONS = {"approve", "abort", "pause", "rollback"}
WITHOUT_RUN = {"ping", "create", "runs", "models"}
ENDED = {
    "completed": RunStatus.COMPLETED,
    "paused": RunStatus.PAUSED,
    "stopped": RunStatus.STOPPED,
    "failed": RunStatus.FAILED,
}


class Service:
    """One workspace's operations. Use as a context manager; the caller holds the workspace's lock."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.database = Database.open(workspace.database)
        self._workers: dict[str, subprocess.Popen[bytes] | None] = {}
        # Answers given while this host lives, by decision id: the same one again gets the same answer.
        self._decided: dict[str, Answer] = {}
        self._operations: dict[str, Callable[[Answer], Answer]] = {
            "ping": lambda request: {"pid": os.getpid()},
            "create": self._create,
            "start": self._start,
            "alive": lambda request: {"alive": str(request["run"]) in self._workers},
            "runs": self._runs,
            "show": self._show,
            "command": self._command,
            "undo_rollback": self._undo_rollback,
            "rehearse_rollback": self._rehearse_rollback,
            "models": self._models,
        }
        self._reports = WorkerReports(self.database)
        self._upkeep = Maintenance(workspace, self.database).operations

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.database.close()

    def handle(self, request: Answer) -> Answer:
        """Do one operation.

        Raises:
            ScalerError: whatever was refused; the state is then as it was.
        """
        op = request.get("op")
        if isinstance(op, str) and op in self._upkeep:
            return self._upkeep[op](request)
        if not isinstance(op, str) or op not in {*self._operations, *self._reports.operations}:
            known = ", ".join(self._operations)
            raise SpecError(f"unknown operation {str(op)[:40]!r}", f"one of {known}")
        if op not in WITHOUT_RUN and not isinstance(request.get("run"), str):
            raise SpecError(f"a request {op} without a run", "the field run: a run's id")
        if op in self._reports.operations:
            return self._reports.handle(op, request)
        return self._operations[op](request)

    # Runs

    def _create(self, request: Answer) -> Answer:
        """Queue a signed job: {job, plan} -> {run}."""
        job = parse_job(request.get("job"))
        signed = check_job(job)
        plan = Plan.from_dict(request.get("plan"))
        run_dir = self.workspace.new_run_dir(job.name)
        run_dir.write_job(job.model_dump(mode="json", by_alias=True))
        run_dir.write_plan(plan.as_dict())
        with self.database.session() as connection:
            queries.create_run(
                connection,
                NewRun(
                    run_dir.id, run_dir.identity().uuid, job.name, job.recipe,
                    job.model_dump(mode="json", by_alias=True), job_hash(job), signed.hash,
                ),
                time.time(),
            )  # fmt: skip
        flightlog.append(
            self.workspace.flight_log, "signature", run_dir.id,
            {"contract": signed.hash, "authorized_by": signed.contract.authorized_by},
        )  # fmt: skip
        return {"run": run_dir.id}

    def _start(self, request: Answer) -> Answer:
        """Start or take over a run's worker; only for a host that stays: {run} -> {attempt, adopted}."""
        run_dir = self.workspace.run_dir(str(request["run"]))
        with self.database.session() as connection:
            run = queries.get_run(connection, run_dir.id)
            if is_locked(run_dir.lock):
                return self._adopt(run)
            if run.status != RunStatus.QUEUED:
                self._settle_dead(connection, run)
                if queries.get_run(connection, run.id).status != RunStatus.QUEUED:
                    queries.set_status(connection, run.id, RunStatus.QUEUED, time.time())
            # What was asked of an earlier worker that ended before it heard is not meant for this one.
            for command in queries.pending_commands(connection, run.id):
                queries.consume_command(connection, command.id, time.time())
            host = Host(socket.gethostname()[:255], os.getpid(), boot_id())
            attempt = queries.start_attempt(connection, run.id, host, time.time())
            offline = run.job.get("dataset", {}).get("source") != "huggingface_hub"
            worker = start_worker(run_dir, run.id, attempt.number, self.workspace.socket, offline=offline)
            queries.record_worker(connection, run.id, attempt.number, worker.pid)
        self._workers[run.id] = worker
        return {"attempt": attempt.number, "adopted": False, "run": run.id}

    def _adopt(self, run: Run) -> Answer:
        """A worker that outlived its host goes on under this one: it reconnects by itself."""
        if run.status not in ACTIVE:
            raise WorkspaceBusyError(f"a worker of run {run.id} is still ending", "", "try again in a moment")
        self._workers[run.id] = None
        with self.database.session() as connection:
            newest = queries.latest_attempt(connection, run.id)
        return {"attempt": newest.number if newest else 0, "adopted": True, "run": run.id}

    def _settle_dead(self, connection: Any, run: Run) -> None:
        """A run that looks active but has no living worker: its host died too. Close its attempt."""
        newest = queries.latest_attempt(connection, run.id)
        if run.status in ACTIVE and newest is not None and newest.ended is None:
            self._close_attempt(run.id, newest.number, None)

    def reap(self) -> None:
        """Close the attempts of workers that have ended. Called often by the host."""
        for run_id, worker in list(self._workers.items()):
            run_dir = self.workspace.run_dir(run_id)
            ended = worker.poll() is not None if worker is not None else not is_locked(run_dir.lock)
            if not ended:
                continue
            del self._workers[run_id]
            with self.database.session() as connection:
                newest = queries.latest_attempt(connection, run_id)
            if newest is not None and newest.ended is None:
                try:
                    self._close_attempt(run_id, newest.number, worker.returncode if worker else None)
                except ScalerError as error:
                    # The attempt itself is closed first; a failed rollback or registration is noted, and
                    # the other runs' workers are still looked after.
                    log.error("run %s: %s", run_id, error)
                    self._note(run_id, error)

    def _note(self, run_id: str, error: ScalerError) -> None:
        with self.database.session() as connection:
            queries.log_event(connection, run_id, time.time(), "problem", {"found": str(error)})

    def _close_attempt(self, run_id: str, token: int, returncode: int | None) -> None:
        run_dir = self.workspace.run_dir(run_id)
        ending = read_ending(run_dir, token, returncode)
        status = ENDED[ending.status]
        with self.database.session() as connection:
            self._catch_up(connection, run_dir, token)
            for gate in queries.open_gates(connection, run_id):
                queries.answer_gate(
                    connection, gate.id, "pause", "nobody", "the worker ended", uuid.uuid4().hex, time.time()
                )
            if (
                status == RunStatus.COMPLETED
                and queries.get_run(connection, run_id).status != RunStatus.RUNNING
            ):
                queries.set_status(connection, run_id, RunStatus.RUNNING, time.time())
            queries.end_attempt(
                connection, run_id, token, "interrupted" if not ending.clean else ending.status, status,
                time.time(), error=ending.reason or None, advice=ending.advice or None,
            )  # fmt: skip
        if not ending.clean:
            flightlog.append(self.workspace.flight_log, "worker_died", run_id, {"reason": ending.reason})
        if ending.rollback_to is not None:
            self._roll_back(run_id, ending.rollback_to, "asked for at a gate")
        if status == RunStatus.COMPLETED:
            self._register(run_dir)

    def _catch_up(self, connection: Any, run_dir: RunDir, token: int) -> None:
        """Enter the phases that a worker committed while no host was there to be told."""
        known = {phase.phase: phase.checkpoint for phase in queries.list_phases(connection, run_dir.id)}
        try:
            chain = CheckpointStore(run_dir).chain()
        except CheckpointError:
            return  # resuming repairs it, or says what is lost
        for checkpoint in chain:
            if known.get(checkpoint.phase) != checkpoint.name:
                queries.start_phase(connection, run_dir.id, token, checkpoint.phase, checkpoint.created)
                queries.finish_phase(
                    connection, run_dir.id, token, checkpoint.phase, "done", checkpoint.created,
                    checkpoint.name, checkpoint.metrics,
                )  # fmt: skip

    def _register(self, run_dir: RunDir) -> None:
        """Enter what the run exported into the registry, with its lineage.

        Names carry the content's hash: a run that was rolled back and finished again exports another model.
        """
        result = run_dir.result() or {}
        export = result.get("export") or {}
        with self.database.session() as connection:
            path = Path(result["model"]["path"])
            base = f"{path.name[:40]}-{registry.content_hash(path)[:12]}"
            registry.register(connection, base, "base", path, time.time())
            for kind in EXPORT_KINDS:
                if export.get(kind):
                    place = Path(export[kind])
                    name = f"{run_dir.id[:44]}-{kind}-{registry.content_hash(place)[:11]}"
                    registry.register(
                        connection, name, kind, place, time.time(),
                        run_id=run_dir.id, parent=base, metrics=result.get("summary") or {},
                    )  # fmt: skip

    def _runs(self, request: Answer) -> Answer:
        with self.database.session() as connection:
            return {"runs": [self._row(run) for run in queries.list_runs(connection)]}

    def _show(self, request: Answer) -> Answer:
        run_dir = self.workspace.run_dir(str(request["run"]))
        with self.database.session() as connection:
            run = queries.get_run(connection, run_dir.id)
            phases = queries.list_phases(connection, run.id)
            gates = queries.open_gates(connection, run.id)
            history = queries.run_history(connection, run.id)
        return {
            **self._row(run),
            "path": str(run_dir.path),
            "phases": [asdict(phase) for phase in phases],
            "open_gates": [asdict(gate) for gate in gates],
            "history": [asdict(event) for event in history],
            "job": dict(run.job),
        }

    def _row(self, run: Run) -> Answer:
        dead = run.status in ACTIVE and not is_locked(self.workspace.runs / run.id / "run.lock")
        return {
            "run": run.id, "uuid": run.uuid, "recipe": run.recipe, "phase": run.phase,
            "status": "interrupted" if dead else str(run.status),
            "created": run.created, "updated": run.updated, "error": run.error, "advice": run.advice,
        }  # fmt: skip

    def _models(self, request: Answer) -> Answer:
        with self.database.session() as connection:
            return {"models": [asdict(model) for model in registry.list_models(connection)]}

    # What a person asks of a run

    def _command(self, request: Answer) -> Answer:
        """{run, action, by, reason, target_phase, decision_id} -> {message}."""
        decision = str(request.get("decision_id") or uuid.uuid4().hex)
        if decision not in self._decided:
            self._decided[decision] = self._act(request, decision)
        return self._decided[decision]

    def _act(self, request: Answer, decision: str) -> Answer:
        run_dir = self.workspace.run_dir(str(request["run"]))
        if str(request.get("action")) not in GATE_ACTIONS:
            raise SpecError(
                f"unknown action {str(request.get('action'))[:40]!r}",
                f"one of {', '.join(sorted(GATE_ACTIONS))}",
            )
        action = cast(GateAction, request["action"])
        by, reason = str(request.get("by") or "a person")[:255], str(request.get("reason") or "")[:2000]
        target = None if request.get("target_phase") is None else str(request["target_phase"])
        if action == "rollback" and target is not None:
            CheckpointStore(run_dir).checkpoint(target)
        with self.database.session() as connection:
            run = queries.get_run(connection, run_dir.id)
            alive = is_locked(run_dir.lock)
            if run.status in ACTIVE and not alive:
                self._settle_dead(connection, run)
                run = queries.get_run(connection, run_dir.id)
            gates = queries.open_gates(connection, run.id)
            if run.status == RunStatus.WAITING and gates and action in GATE_ACTIONS:
                queries.answer_gate(
                    connection, gates[-1].id, action, by, reason, decision, time.time(), target
                )
                return {"message": f"{action}: noted for gate {gates[-1].gate} of {run.id}"}
            if alive and action == "approve":
                # Filed as a command it would reach the worker long after the gate it was meant for.
                raise WrongStateError(
                    f"run {run.id} is {run.status} and no gate is open", "a run that waits at a gate",
                    f"look at it with `scaler runs show {run.id}`",
                )  # fmt: skip
            if alive:
                command = Command.STOP if action == "abort" else Command(action)
                queries.add_command(connection, run.id, command, time.time(), target, reason)
                return {"message": f"{action}: sent to {run.id}; it acts at its next step"}
        if action == "rollback":
            result = self._roll_back(run.id, target, by)
            return {
                "message": result.message,
                "seconds": result.seconds,
                "checkpoint": result.checkpoint.name,
            }
        if action == "abort":
            with self.database.session() as connection:
                queries.set_status(connection, run.id, RunStatus.STOPPED, time.time())
            return {"message": f"{run.id} is stopped; everything committed stays"}
        raise WrongStateError(
            f"run {run.id} is {run.status} and no worker is running", "a running run",
            f"`scaler resume {run.id}` continues it and asks at the gate again",
        )  # fmt: skip

    def _roll_back(self, run_id: str, target: str | None, by: str) -> RollbackResult:
        """Flip the head to an earlier phase. No worker is alive."""
        run_dir = self.workspace.run_dir(run_id)
        store = CheckpointStore(run_dir)
        if target is None:
            chain = store.head().chain
            if not chain:
                raise RunNotFoundError(f"run {run_id} has no checkpoint yet", "a committed phase")
            target = chain[-2 if len(chain) > 1 else -1].rpartition("-")[0]
        result = store.rollback(target)
        self._rolled_back(run_dir, result, by)
        return result

    def _undo_rollback(self, request: Answer) -> Answer:
        """{run} -> {message}: stand where the run stood before the last rollback."""
        run_dir = self.workspace.run_dir(str(request["run"]))
        if is_locked(run_dir.lock):
            raise WrongStateError(f"run {run_dir.id} is running", "a run that is not", "pause it first")
        result = CheckpointStore(run_dir).undo_rollback()
        self._rolled_back(run_dir, result, str(request.get("by") or "a person"))
        return {"message": f"Undo complete; you are now at phase {result.checkpoint.phase.removeprefix('P')}"}

    def _rehearse_rollback(self, request: Answer) -> Answer:
        """{run, target_phase} -> {seconds}: roll back, checked by hash, and undo it at once."""
        run_dir = self.workspace.run_dir(str(request["run"]))
        if is_locked(run_dir.lock):
            raise WrongStateError(f"run {run_dir.id} is running", "a run that is not", "pause it first")
        store = CheckpointStore(run_dir)
        back = store.rollback(str(request["target_phase"]))
        forward = store.undo_rollback()
        seconds = {"rollback_seconds": back.seconds, "undo_seconds": forward.seconds}
        flightlog.append(self.workspace.flight_log, "rollback_rehearsed", run_dir.id, seconds)
        return {**seconds, "message": back.message, "checkpoint": back.checkpoint.name}

    def _rolled_back(self, run_dir: RunDir, result: RollbackResult, by: str) -> None:
        checkpoint = result.checkpoint
        with self.database.session() as connection:
            run = queries.get_run(connection, run_dir.id)
            if run.status in (RunStatus.COMPLETED, RunStatus.STOPPED):
                queries.set_status(connection, run.id, RunStatus.PAUSED, time.time())
            queries.record_rollback(connection, run.id, checkpoint.phase, checkpoint.name, time.time())
        with EventWriter(run_dir.events) as writer:
            writer.write(
                RolledBack(phase=checkpoint.phase, checkpoint=checkpoint.name, seconds=result.seconds)
            )
        flightlog.append(
            self.workspace.flight_log, "rollback", run_dir.id,
            {"phase": checkpoint.phase, "checkpoint": checkpoint.name, "by": by, "seconds": result.seconds},
        )  # fmt: skip
