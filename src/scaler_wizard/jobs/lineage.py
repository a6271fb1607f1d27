"""What the host does around a run of a model lineage: where it starts from, what it leaves.

The parent is noted before a worker starts, a version is published before the run counts as completed. Both
may be done twice: a host that is killed in between does them again and finds what is there.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection

from scaler_wizard.errors import WrongStateError
from scaler_wizard.specs.continual import ConsolidateJob
from scaler_wizard.specs.experts import ExpertsJob
from scaler_wizard.specs.job import FileJob, parse_job
from scaler_wizard.store import queries, queue, versions
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.records import Run, Version
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.version_files import StagedVersion, version_name
from scaler_wizard.store.workspace import Workspace

STARTS_FROM = ("lineage", "version", "sha256", "base", "adapter")


def note_parent(connection: Connection, workspace: Workspace, run: Run, run_dir: RunDir) -> None:
    """Write parent.json of a run of a lineage that is about to start; nothing for other runs.

    A run that began on a version that is not the current one any more begins anew from the one that is: its
    checkpoints stay on the disk, but none of them counts.

    Raises:
        ModelError: the current version is damaged, or its base is gone.
        WrongStateError: a version was to be merged that is not the current one any more.
        CheckpointError, WorkspaceError: the run directory cannot be written.
    """
    job = parse_job(run.job)
    if isinstance(job, ExpertsJob):
        run_dir.write_parent(versions.experts_parent(connection, job))
        return
    if isinstance(job, FileJob):
        return
    before, now = run_dir.parent(), versions.parent_record(connection, workspace, job)
    if isinstance(job, ConsolidateJob) and job.version != now["version"]:
        stands = "its base" if now["version"] is None else version_name(now["version"])
        raise WrongStateError(
            f"{now['lineage']} stands at {stands}, and {version_name(job.version)} was to be merged",
            "the current version", "ask for that one: `scaler models consolidate`",
        )  # fmt: skip
    if before is not None and _place(before) == _place(now):
        return  # what it replays stays as it was, too: a resumed run sees the same data
    if before is not None and CheckpointStore(run_dir).restart():
        data = {"from": before.get("version"), "to": now["version"]}
        queries.log_event(connection, run.id, time.time(), "begun_anew", data)
    run_dir.write_parent(now)


def publish(
    connection: Connection, workspace: Workspace, run_dir: RunDir, staged: StagedVersion | None = None
) -> Version | None:
    """Publish what a completed run exported as the lineage's next version; None where it exported none.

    Args:
        staged: its files, where the slow part was done before.

    Raises:
        RunError, ModelError: the export cannot be stored; what was trained is still in the run directory.
    """
    result = run_dir.result() or {}
    if "version" not in result:
        return None
    version = versions.publish(connection, workspace, run_dir, result, time.time(), staged)
    data = {"lineage": version.lineage, "version": version.number, "status": version.status}
    queries.log_event(connection, run_dir.id, time.time(), "published", data)
    if version.status == "current":
        _skip_merges(connection, version)
    return version


def _skip_merges(connection: Connection, version: Version) -> None:
    """A merge that waited behind this version would merge an older one: it is asked for again when due."""
    why = f"{version.lineage} has moved on to {version_name(version.number)}"
    for run in queue.queued(connection):
        if run.recipe == "consolidate" and run.lineage == version.lineage and run.id != version.run_id:
            queue.skip(connection, run.id, time.time(), why, "the daemon")


def _place(parent: dict[str, Any]) -> list[object]:
    return [parent.get(key) for key in STARTS_FROM]
