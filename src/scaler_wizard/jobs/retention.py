"""Looks at a workspace, asks `safety.retention` what may go, and deletes it: renamed first, then removed.

Only runs that have ended, and whose directory no process holds, are touched. Killed in between, what was
renamed lies in .trash/ and is removed by the next call.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, select

from scaler_wizard.errors import CheckpointError, ModelError, RunError, WorkspaceBusyError
from scaler_wizard.jobs.standing import load_config
from scaler_wizard.safety.retention import Entry, RetentionPlan, plan_retention
from scaler_wizard.specs.continual import RetentionSection
from scaler_wizard.store import backup, registry, versions
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.config import config_path
from scaler_wizard.store.database import transaction
from scaler_wizard.store.durable import OS, FileSystem
from scaler_wizard.store.lock import RunLock
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import FINISHED, RunStatus
from scaler_wizard.store.tables import RUNS
from scaler_wizard.store.version_files import read_manifest
from scaler_wizard.store.workspace import Workspace

TRASH = ".trash"
PINS = "pins.json"
_DAY = 86_400.0


def plan(
    connection: Connection, workspace: Workspace, section: RetentionSection, now: float
) -> RetentionPlan:
    """What a retention run would delete now; changes nothing."""
    with transaction(connection):
        statuses = {
            row.id: RunStatus(row.status) for row in connection.execute(select(RUNS.c.id, RUNS.c.status))
        }
    published = {row.run_id for row in versions.list_versions(connection) if row.status != "deleted"}
    entries: list[Entry] = []
    protected: dict[str, str] = {}
    for run_dir in workspace.run_dirs():
        found = list(_entries(workspace, run_dir, run_dir.id in published))
        entries += found
        if statuses.get(run_dir.id) not in FINISHED:
            protected |= {entry.name: "its run has not ended" for entry in found}
        else:
            protected |= _course(workspace, run_dir, found)
    for path, reason in _pointed_to(connection, workspace, now):
        for entry in entries:
            if _touches(entry.name, path):
                protected.setdefault(entry.name, reason)
    return plan_retention(entries, protected, section, now, tree_bytes(workspace.runs))


def carry_out(workspace: Workspace, decided: RetentionPlan, fs: FileSystem = OS) -> list[str]:
    """Delete what was decided; returns the names that are gone. What a process holds by now is left."""
    trash = workspace.root / TRASH
    sweep_trash(workspace, fs)
    gone = []
    for deletion in decided.deletions:
        path = workspace.root / deletion.entry.name
        if not trash.is_dir():
            fs.mkdir(trash)
        with contextlib.suppress(WorkspaceBusyError):
            with RunLock.acquire(workspace.runs / deletion.entry.run / "run.lock"):
                fs.rename(path, trash / f"{secrets.token_hex(4)}-{path.name}")
                fs.fsync(path.parent)
            gone.append(deletion.entry.name)
    sweep_trash(workspace, fs)
    return gone


def sweep_trash(workspace: Workspace, fs: FileSystem = OS) -> int:
    """Remove what an interrupted deletion left; returns how many things."""
    folder = workspace.root / TRASH
    left = list(folder.iterdir()) if folder.is_dir() else []
    for path in left:
        fs.remove_tree(path)
    return len(left)


def write_pins(connection: Connection, workspace: Workspace) -> str:
    """pins.json of a daily snapshot: paths that stand for this day's state."""
    pinned = [row.path for row in versions.list_versions(connection) if row.status == "current"]
    for run_dir in workspace.run_dirs():
        with contextlib.suppress(CheckpointError):
            head = CheckpointStore(run_dir).head()
            newest = [*head.steps[:1], *head.chain[-1:]]
            pinned += [f"runs/{run_dir.id}/checkpoints/{name}" for name in newest]
    return json.dumps(pinned)


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; a file with several names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # deleted while we look
                status = Path(parent, name).lstat()
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    total += status.st_size
    return total


def _entries(workspace: Workspace, run_dir: RunDir, is_published: bool) -> Iterator[Entry]:
    store = CheckpointStore(run_dir)
    base = f"{workspace.runs.name}/{run_dir.id}"
    for name in store.names():
        with contextlib.suppress(CheckpointError):  # damaged: evidence, not garbage
            found = store.manifest(name)
            loss = found.metrics.get("loss")
            yield Entry(
                f"{base}/checkpoints/{name}",
                "phase checkpoint" if found.kind == "phase" else "step checkpoint",
                run_dir.id, _freed(found.path), found.created,
                float(loss) if isinstance(loss, int | float) else None,
            )  # fmt: skip
    quarantine = store.directory / ".quarantine"
    for path in sorted(quarantine.iterdir()) if quarantine.is_dir() else []:
        if path.is_dir():
            name = f"{base}/checkpoints/.quarantine/{path.name}"
            yield Entry(name, "quarantined checkpoint", run_dir.id, _freed(path), path.stat().st_mtime)
    # The host's own copy of the weights is in models/; the export of an unpublished run is all there is.
    if is_published and run_dir.export.is_dir():
        created = run_dir.export.stat().st_mtime
        yield Entry(f"{base}/export", "export", run_dir.id, _freed(run_dir.export), created)
    if (folder := run_dir.path / "input").is_dir():
        yield Entry(f"{base}/input", "input", run_dir.id, _freed(folder), folder.stat().st_mtime)


def _course(workspace: Workspace, run_dir: RunDir, entries: list[Entry]) -> dict[str, str]:
    """What the run's own head refers to; everything where it cannot be read."""
    try:
        names = CheckpointStore(run_dir).head().referenced()
    except CheckpointError:
        return {entry.name: "the run's head is damaged: resume it first" for entry in entries}
    base = f"{workspace.runs.name}/{run_dir.id}/checkpoints"
    return {f"{base}/{name}": "part of its run's course" for name in names}


def _pointed_to(connection: Connection, workspace: Workspace, now: float) -> Iterator[tuple[str, str]]:
    """(path relative to the workspace, why) of what config, registry, versions, replay, snapshots need."""
    for key, named in _named_in_config(workspace):
        if (path := _inside(workspace, named)) is not None:
            yield path, f"{key} in the config names it"
    for model in registry.list_models(connection):
        if (path := _inside(workspace, model.path)) is not None:
            yield path, f"registered as model {model.name}"
    learned = set()
    for version in versions.list_versions(connection):
        if version.status == "deleted":
            continue
        if version.run_id is not None:
            learned.add(version.run_id)
        with contextlib.suppress(ModelError):
            base = read_manifest(versions.folder_of(workspace, version)).base
            path = _inside(workspace, base.path) if base is not None and base.version is None else None
            if path is not None:
                yield path, f"the base of {version.lineage} v{version.number:03d}"
    for run in learned:
        yield f"{workspace.runs.name}/{run}/input", "replayed by the versions that learned it"
    for run_dir in workspace.run_dirs():
        with contextlib.suppress(RunError):
            for file in (run_dir.parent() or {}).get("replay") or ():
                if (path := _inside(workspace, str(file))) is not None:
                    yield path, f"replayed by run {run_dir.id}"
    for snapshot in backup.list_backups(workspace):
        if snapshot.why == backup.DAILY and _day(snapshot.created) >= _day(now - _DAY):
            with contextlib.suppress(OSError, ValueError):
                for path in json.loads((snapshot.path / PINS).read_bytes()):
                    yield str(path), "in the snapshot of today or yesterday"


def _named_in_config(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """(key, absolute path) of files and folders that config.yaml names.

    Raises:
        SpecError: it cannot be read: then nobody knows what it needs, and nothing is deleted.
    """
    if not config_path(workspace).exists():
        return
    read = load_config(workspace)
    yield "model.base_model", read.model.base_model
    if read.model.tokenizer:
        yield "model.tokenizer", read.model.tokenizer
    for key in ("easy", "medium", "hard"):
        if named := getattr(read.validation, key):
            yield f"validation.{key}", named


def _day(seconds: float) -> tuple[int, ...]:
    return tuple(time.localtime(seconds)[:3])


def _inside(workspace: Workspace, path: str) -> str | None:
    place = Path(path)
    for root in (workspace.root, workspace.root.resolve()):
        if place.is_absolute() and place.is_relative_to(root):
            return str(place.relative_to(root))
    return None


def _touches(name: str, path: str) -> bool:
    """Whether one is the other, or lies inside it."""
    return name == path or path.startswith(f"{name}/") or name.startswith(f"{path}/")


def _freed(folder: Path) -> int:
    """Bytes that deleting a folder frees: files with another name elsewhere free nothing."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                status = Path(parent, name).lstat()
                total += status.st_size if status.st_nlink == 1 else 0
    return total
