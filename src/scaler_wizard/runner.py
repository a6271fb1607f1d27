"""For programs that embed Scaler Wizard: `run_job(job)` runs one signed job and returns its result.

The same path as `scaler run`: the calling process becomes the host, a worker process does the work. Gates
are answered from a terminal (`scaler approve RUN`) or by the job itself (`safety.gates.ask: auto_approve`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaler_wizard.errors import WorkerDiedError
from scaler_wizard.jobs.host import hosting
from scaler_wizard.jobs.prepare import parse_job, prepare
from scaler_wizard.safety.contract import check_job
from scaler_wizard.store.workspace import Workspace

POLL_SEC = 0.1


def run_job(job: Mapping[str, Any], workspace: Path | None = None) -> dict[str, Any]:
    """Run a job to its end and return {run, status, error, advice, result}.

    Args:
        job: the mapping a job file holds, contract included; relative paths are relative to the current
            folder.
        workspace: the workspace folder; the default one when None.

    Raises:
        ContractNotAcceptedError: missing, unsigned or altered contract; no model was loaded.
        WorkerDiedError: the worker was killed or crashed; the run can be resumed.
        ScalerError: whatever else makes the job impossible.
    """
    spec = parse_job(dict(job), Path.cwd())
    check_job(spec)
    space = Workspace.create(workspace)
    plan = prepare(spec, space).plan
    with hosting(space) as host:
        created = host.call("create", job=spec.model_dump(mode="json", by_alias=True), plan=plan.as_dict())
        run = str(created["run"])
        host.call("start", run=run)
        while host.call("alive", run=run)["alive"]:
            time.sleep(POLL_SEC)
        row = host.call("show", run=run)
    run_dir = space.run_dir(run)
    if run_dir.exit_status() is None:
        raise WorkerDiedError(str(row["error"]), "", str(row["advice"] or ""))
    keys = ("run", "status", "error", "advice")
    return {**{key: row[key] for key in keys}, "result": run_dir.result()}
