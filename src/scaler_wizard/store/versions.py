"""The versions of a model lineage: published once, one of them current, restored and deleted without loss.

Publishing is: stage, fsync, rename to vNNN, fsync, then one database transaction. Killed between any two
of these, publishing the same result again ends in the same one version (tests/faults enumerates it).
Rows hold paths relative to the workspace, so that it can be moved. Files are `version_files`' matter.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from scaler_wizard.errors import ModelError, ModelNotFoundError, WrongStateError
from scaler_wizard.specs.experts import ExpertsJob
from scaler_wizard.specs.job import LineageJob
from scaler_wizard.store.database import transaction
from scaler_wizard.store.durable import OS, FileSystem
from scaler_wizard.store.names import contained
from scaler_wizard.store.records import Version, VersionStatus
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import FINISHED, RunStatus
from scaler_wizard.store.tables import RUNS, VERSIONS
from scaler_wizard.store.version_files import (
    IMPORTED,
    WEIGHTS,
    StagedVersion,
    VersionManifest,
    numbered_folders,
    read_manifest,
    stage,
    verify,
    version_name,
)
from scaler_wizard.store.workspace import Workspace

TRASH = ".trash-"


def parent_record(connection: Connection, workspace: Workspace, job: LineageJob) -> dict[str, Any]:
    """What a run of this lineage starts from; the host writes it as parent.json.

    {lineage, version: number of the current version or null, base: model directory or the name from the
    config, base_version: number of the version that is the base, or null, base_sha256:
    `models.hashing.weights_sha256` of the base as an earlier worker measured it, or null,
    adapter: folder or null, sha256: `registry.content_hash` of the version's own folder (the adapter,
    else the base), null before the first version, replay: [files that the current version has learned,
    oldest first], replay_missing: [runs whose file is gone], lineage_runs: how many runs led here}.

    Raises:
        ModelError: the current version's manifest is damaged, or its base is gone.
    """
    lineage = job.lineage.model_name
    version = current(connection, lineage)
    chain = _ancestors(connection, version) if version else []
    present, missing = _inputs(connection, workspace, [row.run_id for row in chain if row.run_id])
    record: dict[str, Any] = {
        "lineage": lineage, "version": None, "base": job.model.base_model, "base_version": None,
        "base_sha256": None, "adapter": None, "sha256": None, "replay": present,
        "replay_missing": missing, "lineage_runs": len(chain),
    }  # fmt: skip
    if version is None:
        return record
    manifest = read_manifest(folder_of(workspace, version))
    record |= {"version": version.number, "sha256": version.sha256}
    weights = folder_of(workspace, version) / WEIGHTS[manifest.kind]
    if manifest.kind == "full":
        return record | {"base": str(weights), "base_version": version.number}
    assert manifest.base is not None, "an adapter's manifest names its base"
    record |= {"adapter": str(weights), "base_sha256": manifest.base.weights_sha256}
    if manifest.base.version is None:
        return record | {"base": manifest.base.path}
    base = get(connection, lineage, manifest.base.version)
    if base.status == "deleted":
        raise ModelError(
            f"{lineage} {version_name(version.number)} needs {version_name(base.number)}, which was deleted",
            "its base", "restore another version with `scaler models restore`",
        )  # fmt: skip
    path = folder_of(workspace, base) / WEIGHTS["full"]
    return record | {"base": str(path), "base_version": base.number}


def experts_parent(connection: Connection, job: ExpertsJob) -> dict[str, Any]:
    """What a bundle of experts will follow; fields as in `parent_record`. Nothing is trained from it."""
    version = current(connection, job.deploy.name)
    return {
        "lineage": job.deploy.name, "version": version.number if version else None,
        "base": job.model.base_model, "base_version": None, "base_sha256": None, "adapter": None,
        "sha256": version.sha256 if version else None,
    }  # fmt: skip


def publish(
    connection: Connection,
    workspace: Workspace,
    run_dir: RunDir,
    result: dict[str, Any],
    now: float,
    staged: StagedVersion | None = None,
) -> Version:
    """Make what a run exported the lineage's next version: current when promoted, else held.

    It is held, too, when the version that the run started from is not the current one any more (a
    person restored another meanwhile). The same export of the same run again returns its version.

    Args:
        result: result.json, see `version_files.stage`.
        staged: what `stage` returned, where the slow part was done before; staged here otherwise.

    Raises:
        RunError, ModelError: as `stage`.
    """
    return publish_staged(
        connection, workspace, staged or stage(workspace, run_dir, result, now), now, run_dir.fs
    )


def publish_staged(
    connection: Connection, workspace: Workspace, staged: StagedVersion, now: float, fs: FileSystem = OS
) -> Version:
    """Give staged files a number, a place and a row; the version that they are already, where they are one.

    Raises:
        ModelError: the disk is full or failing.
    """
    known = _published(connection, staged.manifest)
    if known is not None:
        fs.remove_tree(staged.path)
        return known
    number, is_there = _place(connection, staged)
    target = staged.path.parent / version_name(number)
    try:
        if is_there:
            fs.remove_tree(staged.path)
        else:
            fs.rename(staged.path, target)
        fs.fsync(target.parent)
    except OSError as error:
        raise ModelError(
            f"{target} could not be written ({error.strerror})", "a working disk with space",
            "free some space; it is tried again",
        ) from error  # fmt: skip
    return insert_version(connection, workspace, read_manifest(target), number, now)


def insert_version(
    connection: Connection, workspace: Workspace, manifest: VersionManifest, number: int, now: float
) -> Version:
    """Enter a version whose files lie at their place; current when it is promoted and nothing moved on."""
    with transaction(connection):
        before = _current(connection, manifest.lineage)
        follows = manifest.parent == (before.number if before else None)
        reasons = list(manifest.reasons)
        if manifest.promote and not follows:
            reasons.append("held: the lineage's current version changed while this one was trained")
        becomes_current = manifest.promote and follows
        if becomes_current and before is not None:
            _set_status(connection, before.id, "superseded")
        parent = _row(connection, manifest.lineage, manifest.parent) if manifest.parent is not None else None
        is_known = select(RUNS.c.id).where(RUNS.c.id == manifest.run)
        values = {
            "lineage": manifest.lineage, "number": number, "sha256": manifest.sha256,
            "status": "current" if becomes_current else "held",
            "path": f"{workspace.models.name}/{manifest.lineage}/{version_name(number)}",
            "parent_id": parent.id if parent else None,
            "run_id": connection.execute(is_known).scalar_one_or_none(),
            "description": manifest.description, "created": now,
            "metrics": {**manifest.metrics, "reasons": reasons},
        }  # fmt: skip
        connection.execute(insert(VERSIONS).values(values))
        return _require(connection, manifest.lineage, number)


def current(connection: Connection, lineage: str) -> Version | None:
    """The version that the lineage stands at, None before the first."""
    with transaction(connection):
        return _current(connection, lineage)


def list_versions(connection: Connection, lineage: str | None = None) -> tuple[Version, ...]:
    """All versions, deleted ones too, of one lineage or of all: by lineage, newest first."""
    query = select(VERSIONS).order_by(VERSIONS.c.lineage, VERSIONS.c.number.desc())
    if lineage is not None:
        query = query.where(VERSIONS.c.lineage == lineage)
    with transaction(connection):
        return tuple(Version(**row) for row in connection.execute(query).mappings())


def get(connection: Connection, lineage: str, number: int) -> Version:
    """One version; ModelNotFoundError when there is none of that number."""
    with transaction(connection):
        return _require(connection, lineage, number)


def folder_of(workspace: Workspace, version: Version) -> Path:
    """The version's folder; WorkspaceError when its row leads outside of models/."""
    return contained(workspace.models, *Path(version.path).parts[1:])


def restore(connection: Connection, workspace: Workspace, lineage: str, number: int) -> Version:
    """Make an earlier (or held) version the current one again, its bytes verified. Nothing is deleted.

    Raises:
        ModelNotFoundError: no such version.
        WrongStateError: it was deleted.
        ModelError: its files are damaged; what is current stays.
    """
    wanted = get(connection, lineage, number)
    if wanted.status == "deleted":
        raise WrongStateError(
            f"{lineage} {version_name(number)} was deleted", "a version that is kept",
            "list them with `scaler models list`",
        )  # fmt: skip
    verify(folder_of(workspace, wanted))
    with transaction(connection):
        before = _current(connection, lineage)
        if before is not None and before.id != wanted.id:
            _set_status(connection, before.id, "superseded")
        _set_status(connection, wanted.id, "current")
        return _require(connection, lineage, number)


def needed_by(connection: Connection, workspace: Workspace, version: Version) -> str | None:
    """Who needs this version's files, in words; None when nobody does."""
    name = version_name(version.number)
    if version.status == "current":
        return f"{name} is the current version"
    for other in list_versions(connection, version.lineage):
        if other.status == "deleted" or other.id == version.id:
            continue
        with contextlib.suppress(ModelError):  # a damaged version needs nothing any more
            base = read_manifest(folder_of(workspace, other)).base
            if base is not None and base.version == version.number:
                return f"{name} is the base of {version_name(other.number)}"
    open_states = [status for status in RunStatus if status not in FINISHED]
    query = select(RUNS.c.id).where(RUNS.c.lineage == version.lineage, RUNS.c.status.in_(open_states))
    with transaction(connection):
        runs = list(connection.execute(query).scalars())
    for run in runs:
        parent = RunDir(workspace.runs / run).parent() or {}
        if version.number in (parent.get("version"), parent.get("base_version")):
            return f"{name} is what run {run} started from"
    return None


def delete(
    connection: Connection, workspace: Workspace, lineage: str, number: int, fs: FileSystem = OS
) -> Version:
    """Delete a version's files; its row stays as "deleted", so that its number is never used again.

    Row first: a crash leaves files without use, which `sweep` removes, never a row without files.

    Raises:
        ModelNotFoundError: no such version.
        WrongStateError: the version is current, or something needs it.
    """
    version = get(connection, lineage, number)
    if (reason := needed_by(connection, workspace, version)) is not None:
        raise WrongStateError(reason, "a version that nothing needs", "restore another one first")
    with transaction(connection):
        _set_status(connection, version.id, "deleted")
    sweep(connection, workspace, fs)
    return get(connection, lineage, number)


def sweep(connection: Connection, workspace: Workspace, fs: FileSystem = OS) -> list[str]:
    """Remove the files of deleted versions, and what an interrupted removal left; returns their names."""
    removed = []
    for version in list_versions(connection):
        folder = folder_of(workspace, version)
        if version.status == "deleted" and folder.is_dir():
            trash = folder.with_name(f"{TRASH}{folder.name}")
            fs.remove_tree(trash)
            fs.rename(folder, trash)
            fs.fsync(folder.parent)
            removed.append(f"{version.lineage} {folder.name}")
    for trash in workspace.models.glob(f"*/{TRASH}*"):
        fs.remove_tree(trash)
    return removed


def orphans(connection: Connection, workspace: Workspace) -> list[tuple[Path, VersionManifest]]:
    """Whole version folders that no row knows (the database was restored from a backup), oldest first."""
    known = {(row.lineage, row.number) for row in list_versions(connection)}
    found = []
    for folder in sorted(path for path in workspace.models.iterdir() if path.is_dir()):
        for number, path in sorted(numbered_folders(folder).items()):
            if (folder.name, number) not in known:
                with contextlib.suppress(ModelError):
                    found.append((path, verify(path)))
    return found


def _published(connection: Connection, manifest: VersionManifest) -> Version | None:
    same = VERSIONS.c.sha256 == manifest.sha256
    if manifest.run == IMPORTED:  # whoever made it: the same bytes are not kept twice
        same &= VERSIONS.c.lineage == manifest.lineage
    else:
        same &= VERSIONS.c.run_id == manifest.run
    with transaction(connection):
        row = connection.execute(select(VERSIONS).where(same, VERSIONS.c.status != "deleted")).mappings()
        first = row.first()
        return Version(**first) if first else None


def _place(connection: Connection, staged: StagedVersion) -> tuple[int, bool]:
    """The number to publish under, and whether a killed publisher already put the files there."""
    lineage = staged.manifest.lineage
    known = {row.number for row in list_versions(connection, lineage)}
    folders = numbered_folders(staged.path.parent)
    for number in sorted(folders.keys() - known):
        with contextlib.suppress(ModelError):
            there = verify(folders[number])
            if (there.run, there.sha256) == (staged.manifest.run, staged.manifest.sha256):
                return number, True
    return max([0, *known, *folders]) + 1, False


def _ancestors(connection: Connection, version: Version) -> list[Version]:
    """The version and those it was trained from, the first one first."""
    by_id = {row.id: row for row in list_versions(connection, version.lineage)}
    chain = [version]
    while chain[-1].parent_id is not None:
        chain.append(by_id[chain[-1].parent_id])
    return chain[::-1]


def _inputs(connection: Connection, workspace: Workspace, runs: list[str]) -> tuple[list[str], list[str]]:
    """(files that these runs learned, in their order; runs whose file is gone)."""
    query = select(RUNS.c.id, RUNS.c.job).where(RUNS.c.id.in_(runs))
    with transaction(connection):
        jobs = {row.id: row.job for row in connection.execute(query)}
    present: list[str] = []
    missing: list[str] = []
    for run in runs:
        file = (jobs.get(run) or {}).get("file")
        if file is None:  # a consolidation learns no file
            continue
        path = Path(workspace.runs / run, "input", Path(str(file["path"])).name)
        if path.is_file() and not path.is_symlink():
            present.append(str(path))
        else:
            missing.append(run)
    return present, missing


def _current(connection: Connection, lineage: str) -> Version | None:
    query = select(VERSIONS).where(VERSIONS.c.lineage == lineage, VERSIONS.c.status == "current")
    row = connection.execute(query).mappings().first()
    return Version(**row) if row else None


def _row(connection: Connection, lineage: str, number: int) -> Version | None:
    query = select(VERSIONS).where(VERSIONS.c.lineage == lineage, VERSIONS.c.number == number)
    row = connection.execute(query).mappings().first()
    return Version(**row) if row else None


def _require(connection: Connection, lineage: str, number: int) -> Version:
    version = _row(connection, lineage, number)
    if version is None:
        raise ModelNotFoundError(
            f"there is no version {version_name(number)} of {lineage}", "a version of this workspace",
            "list them with `scaler models list`",
        )  # fmt: skip
    return version


def _set_status(connection: Connection, version_id: int, status: VersionStatus) -> None:
    connection.execute(update(VERSIONS).where(VERSIONS.c.id == version_id).values(status=status))
