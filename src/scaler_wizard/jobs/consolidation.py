"""Asking for a merge: the current version's adapter becomes a new base, as one more run in the queue.

The daemon asks when it is idle and enough versions stand on one adapter, a person with `scaler models
consolidate`. Planning reads headers and the machine, so it is done by who asks, not on the host's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from scaler_wizard.errors import ModelNotFoundError, ScalerError, WrongStateError
from scaler_wizard.planning.consolidation import make_consolidation_plan
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.hardware import probe_hardware
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store.database import transaction
from scaler_wizard.store.durable import OS
from scaler_wizard.store.queue import dedup_key
from scaler_wizard.store.records import Version
from scaler_wizard.store.tables import RUNS
from scaler_wizard.store.version_files import read_manifest, version_name
from scaler_wizard.store.workspace import Workspace

Call = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Queued:
    """A merge that waits."""

    run: str
    version: int


def adapters_in_a_row(rows: tuple[Version, ...]) -> int:
    """How many versions lead from the last merged base (or the first version) to the current one. Pure."""
    by_id = {row.id: row for row in rows}
    version = next((row for row in rows if row.status == "current"), None)
    number = 0
    while version is not None and not version.metrics.get("consolidated"):
        number += 1
        version = by_id.get(version.parent_id) if version.parent_id is not None else None
    return number


def is_due(connection: Connection, rows: tuple[Version, ...], config: ContinualConfig) -> bool:
    """Whether the daemon should ask for a merge by itself: once for each version, whatever became of it.

    Args:
        rows: the lineage's versions.
    """
    after = config.retention.consolidate_after
    version = next((row for row in rows if row.status == "current"), None)
    if version is None or after == 0 or config.lineage.strategy != "lora" or adapters_in_a_row(rows) < after:
        return False
    asked = select(RUNS.c.id).where(RUNS.c.dedup_key == _key(version.lineage, version.number)).limit(1)
    with transaction(connection):
        return connection.execute(asked).first() is None


def queue_consolidation(workspace: Workspace, config: ContinualConfig, call: Call) -> Queued:
    """Queue the merge of the lineage's current version, at low priority.

    Args:
        call: the host's operations.

    Raises:
        ModelNotFoundError: the lineage has no version yet.
        WrongStateError: its current version is a whole model, or its merge was asked for already.
        ContractNotAcceptedError: the config is not signed as it stands.
        SpecError, ModelError, LimitError: it cannot be merged on this machine.
    """
    lineage = config.lineage.model_name
    number = _mergeable(call("versions", lineage=lineage)["versions"], lineage)
    job = config.consolidation(f"{lineage}-merge"[:59], number)
    facts = read_facts(
        resolve_model(job.model.base_model, job.model.revision),
        allow_remote_code=job.model.trust_remote_code,
    )
    plan = make_consolidation_plan(job, probe_hardware(workspace.root), facts)
    run_dir = workspace.new_run_dir(job.name)
    try:
        answer = call(
            "enqueue", run=run_dir.id, job=job.model_dump(mode="json", by_alias=True), plan=plan.as_dict(),
            dedup_key=_key(lineage, number), lineage=lineage, priority="low",
        )  # fmt: skip
    except ScalerError:
        OS.remove_tree(run_dir.path)
        raise
    if answer["duplicate"]:
        OS.remove_tree(run_dir.path)
        raise WrongStateError(
            f"the merge of {lineage} {version_name(number)} is run {answer['run']}", "a version not merged",
            f"see `scaler runs show {answer['run']}`",
        )  # fmt: skip
    return Queued(run_dir.id, number)


def _mergeable(rows: list[dict[str, Any]], lineage: str) -> int:
    """The number of the current version, which must be an adapter."""
    row = next((row for row in rows if row["status"] == "current"), None)
    if row is None:
        raise ModelNotFoundError(
            f"{lineage} has no current version", "a version that has learned a file",
            "drop a file into the inbox first",
        )  # fmt: skip
    if read_manifest(Path(row["folder"])).kind != "adapter":
        raise WrongStateError(
            f"{lineage} {row['name']} is a whole model: there is no adapter to merge",
            "a version with an adapter", "nothing is to be done",
        )  # fmt: skip
    return int(row["number"])


def _key(lineage: str, number: int) -> str:
    return dedup_key(f"merge {version_name(number)}", lineage)
