"""Rolling a run back to an earlier phase, undoing it, and rehearsing it. No worker of the run is alive."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from scaler_wizard.errors import RunNotFoundError, WrongStateError
from scaler_wizard.specs.events import RolledBack
from scaler_wizard.store import flightlog, phases, queries
from scaler_wizard.store.checkpoints import CheckpointStore, RollbackResult
from scaler_wizard.store.database import Database, transaction
from scaler_wizard.store.events_file import EventWriter
from scaler_wizard.store.lock import is_locked
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.workspace import Workspace

Answer = dict[str, Any]


class Rollbacks:
    """Flips a run's head; the database and the event file follow."""

    def __init__(self, workspace: Workspace, database: Database) -> None:
        self.workspace = workspace
        self.database = database
        self.operations: dict[str, Callable[[Answer], Answer]] = {
            "undo_rollback": self._undo_rollback,
            "rehearse_rollback": self._rehearse_rollback,
        }

    def roll_back(self, run_id: str, target: str | None, by: str) -> RollbackResult:
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
        with self.database.session() as connection, transaction(connection):
            run = queries.get_run(connection, run_dir.id)
            if run.status in (RunStatus.COMPLETED, RunStatus.STOPPED):
                queries.set_status(connection, run.id, RunStatus.PAUSED, time.time())
            phases.record_rollback(connection, run.id, checkpoint.phase, checkpoint.name, time.time())
        with EventWriter(run_dir.events) as writer:
            writer.write(
                RolledBack(phase=checkpoint.phase, checkpoint=checkpoint.name, seconds=result.seconds)
            )
        flightlog.append(
            self.workspace.flight_log, "rollback", run_dir.id,
            {"phase": checkpoint.phase, "checkpoint": checkpoint.name, "by": by, "seconds": result.seconds},
        )  # fmt: skip
