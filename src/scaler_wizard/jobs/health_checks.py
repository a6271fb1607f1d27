"""What can be wrong in a workspace's files: one function a question, each giving findings.

Nothing here opens the database; what it says is handed in. A finding that can be put right carries the
repair, which is done only when a person asks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from scaler_wizard.errors import CheckpointError, ContractNotAcceptedError, ScalerError, WorkspaceBusyError
from scaler_wizard.jobs.disk import GB, disk_verdict
from scaler_wizard.safety.contract import check_job
from scaler_wizard.specs.continual import ContinualConfig, DiskSection
from scaler_wizard.store import backup, config, flightlog
from scaler_wizard.store.ballast import Ballast
from scaler_wizard.store.checkpoint_files import regular_files
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.durable import OS
from scaler_wizard.store.lock import RunLock, is_locked
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import ACTIVE
from scaler_wizard.store.version_files import read_manifest, verify
from scaler_wizard.store.workspace import FOLDERS, Workspace

Severity = Literal["error", "warning"]
# A staging folder may belong to somebody who is writing it now.
LEFTOVER_SECONDS = 600.0


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    check: str
    severity: Severity
    words: str
    fix: str = ""
    """What `--fix` does about it; else what a person can do."""
    repair: Callable[[], object] | None = None


def check_config(workspace: Workspace, locked: list[Mapping[str, Any]]) -> Iterator[Finding]:
    """config.yaml can be read, is signed as it stands, and keeps to the locked keys."""
    if not config.config_path(workspace).exists():
        return
    try:
        loaded = config.load(workspace)
    except ScalerError as error:
        yield Finding("config", "error", error.found, error.todo or "correct config.yaml")
        return
    try:
        check_job(loaded)
    except ContractNotAcceptedError as error:
        yield Finding("config", "warning", error.found, "sign with `scaler daemon sign`")
    for item in locked:
        words = f"{item['key']} is locked and was changed in the file: {item['before']} -> {item['after']}"
        yield Finding("config", "error", words, "`scaler config set KEY VALUE --unlock --reason TEXT`")


def check_flight_log(workspace: Workspace) -> Iterator[Finding]:
    """The flight log's chain of hashes is whole."""
    checked = flightlog.verify(workspace.flight_log)
    if not checked.ok:
        words = f"the flight log was changed at line {checked.first_bad_line}"
        yield Finding("flight log", "error", words, "compare it with the copy in a backup")


def check_runs(workspace: Workspace, statuses: Mapping[str, str]) -> Iterator[Finding]:
    """Every run has a directory and a row; what looks active has a living worker."""
    folders = {run.id for run in workspace.run_dirs()}
    for run in sorted(folders - statuses.keys()):
        yield Finding("runs", "warning", f"runs/{run} is not in the database", "keep it, or move it away")
    for run in sorted(statuses.keys() - folders):
        yield Finding("runs", "error", f"run {run} has no directory", "restore runs/ from your own backup")
    for run in sorted(folders & statuses.keys()):
        if statuses[run] in ACTIVE and not is_locked(workspace.runs / run / "run.lock"):
            words = f"run {run} is {statuses[run]}, but its worker is gone"
            yield Finding("runs", "warning", words, f"`scaler resume {run}`, or start the daemon")


def check_leftovers(workspace: Workspace, now: float) -> Iterator[Finding]:
    """Nothing half-written lies about from a process that was killed."""
    patterns = (
        "runs/*/checkpoints/.staging-*", "models/*/.staging-*", "models/*/.trash-*", "backups/.staging-*",
        ".trash/*", ".*.tmp", "runs/*/.*.tmp",
    )  # fmt: skip
    for pattern in patterns:
        for path in sorted(workspace.root.glob(pattern)):
            name = path.relative_to(workspace.root)
            held = name.parts[0] == "runs" and is_locked(workspace.runs / name.parts[1] / "run.lock")
            with contextlib.suppress(FileNotFoundError):
                if not held and now - path.lstat().st_mtime > LEFTOVER_SECONDS:
                    yield Finding(
                        "leftovers", "warning", f"{name} was left by a process that was killed",
                        "removed", partial(OS.remove_tree, path),
                    )  # fmt: skip


def check_checkpoints(workspace: Workspace, deep: bool) -> Iterator[Finding]:
    """Every checkpoint that a run stands on is there, with its hashes (deep) or its sizes."""
    for run_dir in workspace.run_dirs():
        store = CheckpointStore(run_dir)
        try:
            head = store.head()
            for name in (*head.chain, *head.steps):
                if deep:
                    store.verify(name)
                elif missing := _wrong_size(store.directory / name, store.manifest(name).files):
                    raise CheckpointError(f"checkpoint {name} is damaged: {missing}")
        except CheckpointError as error:
            yield Finding(
                "checkpoints", "error", f"run {run_dir.id}: {error.found}",
                "moved into quarantine; the run goes on from the one before",
                partial(_recover, run_dir),
            )  # fmt: skip


def check_versions(workspace: Workspace, rows: list[Mapping[str, Any]], deep: bool) -> Iterator[Finding]:
    """Every version that is kept has its files, with its hashes (deep) or its sizes."""
    for row in rows:
        if row["status"] == "deleted":
            continue
        folder = Path(str(row["folder"]))
        try:
            manifest = verify(folder) if deep else read_manifest(folder)
            if not deep and (missing := _wrong_size(folder, manifest.files)):
                words = f"version {row['lineage']} {row['name']} is damaged: {missing}"
                yield Finding("versions", "error", words, "`scaler models restore` another one")
        except ScalerError as error:
            yield Finding("versions", "error", error.found, error.todo)


def check_disk(workspace: Workspace, section: DiskSection) -> Iterator[Finding]:
    """There is space, and the ballast is held."""
    free = shutil.disk_usage(workspace.root).free
    verdict = disk_verdict(free, section)
    if verdict != "ok":
        severity: Severity = "error" if verdict == "refuse" else "warning"
        yield Finding(
            "disk", severity, f"{free / GB:.1f} GB are free", "free some space, or `scaler retention`"
        )
    ballast = Ballast(workspace.root, section.ballast_mb)
    if config.config_path(workspace).exists() and not ballast.is_held():
        words = "no space is held back for a full disk"
        yield Finding("disk", "warning", words, "reserved", ballast.reserve)


def check_permissions(workspace: Workspace) -> Iterator[Finding]:
    """Nobody else can read or write what is here."""
    private = [(workspace.root, 0o700), *((workspace.root / name, 0o700) for name in FOLDERS)]
    private += [(backup.backups_folder(workspace), 0o700)]
    private += [(path, 0o600) for path in (workspace.database, config.config_path(workspace), workspace.lock)]
    private += [(workspace.flight_log, 0o600)]
    for path, mode in private:
        with contextlib.suppress(FileNotFoundError):
            found = stat.S_IMODE(path.stat().st_mode)
            if found & 0o077:
                name = path.relative_to(workspace.root.parent)
                yield Finding(
                    "permissions", "warning", f"{name} has mode {found:o}: others may look into it",
                    f"chmod {mode:o}", partial(path.chmod, mode),
                )  # fmt: skip


def check_inbox(workspace: Workspace) -> Iterator[Finding]:
    """Files in the inbox can be read."""
    for path in sorted(workspace.inbox.rglob("*")):
        if path.is_symlink():
            words = f"inbox: {path.name} is a link, which is not followed"
            yield Finding("inbox", "warning", words, "put the file itself there")
        elif not os.access(path, os.R_OK):
            yield Finding("inbox", "warning", f"inbox: {path.name} cannot be read", "check its permissions")


def check_backups(workspace: Workspace, deep: bool) -> Iterator[Finding]:
    """Backups are whole."""
    folder = backup.backups_folder(workspace)
    paths = [p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."] if folder.is_dir() else []
    for path in sorted(paths):
        try:
            (backup.verify if deep else backup.read)(path)
        except ScalerError as error:
            yield Finding("backups", "warning", error.found, "make a new one with `scaler backup create`")


def file_checks(
    workspace: Workspace, facts: Mapping[str, Any], deep: bool, now: float | None = None
) -> list[Finding]:
    """Every check of files, in the order in which they matter.

    Args:
        facts: what the host's operation "health_facts" answered; empty where the database is damaged.
    """
    section = _disk_section(workspace)
    found = [
        *check_config(workspace, facts.get("locked", [])),
        *check_flight_log(workspace),
        *(check_runs(workspace, facts["runs"]) if "runs" in facts else ()),
        *check_leftovers(workspace, time.time() if now is None else now),
        *check_checkpoints(workspace, deep),
        *check_versions(workspace, facts.get("versions", []), deep),
        *check_disk(workspace, section),
        *check_permissions(workspace),
        *check_inbox(workspace),
        *check_backups(workspace, deep),
    ]
    return found


def _disk_section(workspace: Workspace) -> DiskSection:
    try:
        loaded: ContinualConfig = config.load(workspace)
    except ScalerError:
        return DiskSection()
    return loaded.disk


def _wrong_size(folder: Path, files: Mapping[str, Any]) -> str | None:
    sizes = dict(regular_files(folder))
    for name, file in files.items():
        if sizes.get(name) != file.bytes:
            return f"{name} is missing" if name not in sizes else f"{name} has another size"
    return None


def _recover(run_dir: RunDir) -> None:
    with contextlib.suppress(WorkspaceBusyError), RunLock.acquire(run_dir.lock):
        CheckpointStore(run_dir).newest_verified()
