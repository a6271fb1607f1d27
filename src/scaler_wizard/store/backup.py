"""Backups of a workspace's state: database, config and lists of versions and models, hashed, all or nothing.

    backups/20260121-133011-before-restore/
        state.db        a consistent copy, made through the host's one connection
                        (rows.jsonl where the state is on a PostgreSQL server)
        config.yaml, flight_log.jsonl, versions.json
        manifest.json   when, why, hashes; sealed

Weights and checkpoints are not copied: they are never changed in place. A backup can be put back when the
database itself is too damaged to be opened, so reading and restoring need no connection.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from scaler_wizard.errors import WorkspaceError
from scaler_wizard.store import flightlog
from scaler_wizard.store.checkpoint_files import (
    MANIFEST,
    FileHash,
    first_difference,
    hash_files,
    is_sealed,
    sealed,
)
from scaler_wizard.store.config import config_path
from scaler_wizard.store.database import transaction
from scaler_wizard.store.durable import OS, FileSystem, fsync_tree, json_text
from scaler_wizard.store.names import safe_name
from scaler_wizard.store.tables import METADATA, MODELS, VERSIONS
from scaler_wizard.store.workspace import Workspace

FOLDER = "backups"
STATE = "state.db"
ROWS = "rows.jsonl"
DAILY = "daily"
"""Why of the snapshot that housekeeping makes once a day."""
_REPLACED = "what was there before a restore, as it was"
_STAGING = ".staging-"
_TWO_DAYS = 2 * 86_400.0
_MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Backup:
    """One backup."""

    name: str
    path: Path
    created: float
    why: str
    n_bytes: int
    counts: dict[str, int]
    """Rows of each table in it."""


def backups_folder(workspace: Workspace) -> Path:
    """backups/ in the workspace; made when the first one is."""
    return workspace.root / FOLDER


def create(
    connection: Connection,
    workspace: Workspace,
    why: str,
    now: float,
    keep: int | None = None,
    extra: Mapping[str, str] | None = None,
    fs: FileSystem = OS,
) -> Backup:
    """Copy the state into a new backup; it is there completely or not at all.

    Args:
        why: a few words, part of its name.
        keep: afterwards only the newest `keep` backups stay.
        extra: further small files, text by name.

    Raises:
        WorkspaceError: disk full or failing.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    words = re.sub(r"[^a-z0-9]+", "-", why.lower()).strip("-")[:30] or "backup"
    folder = backups_folder(workspace)
    staging = folder / f"{_STAGING}{secrets.token_hex(4)}"
    try:
        if not folder.is_dir():
            fs.mkdir(folder)
            fs.fsync(workspace.root)
        for leftover in folder.glob(f"{_STAGING}*"):
            fs.remove_tree(leftover)
        fs.mkdir(staging)
        counts = _copy_database(connection, staging)
        for path in (config_path(workspace), workspace.flight_log):
            if path.is_file():
                shutil.copyfile(path, staging / path.name, follow_symlinks=False)
        for name, text in {"versions.json": _lists(connection), **(extra or {})}.items():
            fs.write(staging / safe_name(name), text.encode())
        files = {name: asdict(file) for name, file in hash_files(staging).items()}
        body = {"created": now, "why": why[:200], "counts": counts, "files": files}
        fs.write(staging / MANIFEST, json_text(sealed(body)).encode())
        fsync_tree(staging, fs=fs)
        target = _free(folder, f"{stamp}-{words}")
        fs.rename(staging, target)
        fs.fsync(folder)
    except (OSError, sqlite3.Error) as error:
        with contextlib.suppress(OSError):  # the first error is the one to report
            fs.remove_tree(staging)
        raise WorkspaceError(
            f"the backup could not be written ({error})", "a working disk with space",
            "free some space; nothing else was changed",
        ) from error  # fmt: skip
    if keep is not None:
        prune(workspace, keep, now, fs)
    return read(target)


def list_backups(workspace: Workspace) -> list[Backup]:
    """Readable backups, newest first."""
    folder = backups_folder(workspace)
    found = []
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []:
        if path.is_dir() and not path.name.startswith("."):
            with contextlib.suppress(WorkspaceError):  # a damaged one is `scaler health`'s to report
                found.append(read(path))
    return sorted(found, key=lambda backup: (backup.created, backup.name), reverse=True)


def find(workspace: Workspace, name: str) -> Backup:
    """A backup by its name, or for "latest" the newest that was made of a state known to be whole.

    Raises:
        WorkspaceError: there is none of that name.
    """
    if name == "latest" and (newest := latest(workspace)) is not None:
        return newest
    path = backups_folder(workspace) / safe_name(name, "backup name")
    if path.is_dir():
        return read(path)
    raise WorkspaceError(
        f'there is no backup "{name}"', "a backup of this workspace", "list them with `scaler backup list`"
    )


def latest(workspace: Workspace) -> Backup | None:
    """The newest backup, what a restore set aside (perhaps damaged) left out; None when there is none."""
    return next((item for item in list_backups(workspace) if item.why != _REPLACED), None)


def read(path: Path) -> Backup:
    """A backup as its manifest describes it; its files are not hashed.

    Raises:
        WorkspaceError: the manifest is missing or damaged.
    """
    value = _manifest(path)
    total = sum(int(file["bytes"]) for file in value["files"].values())
    return Backup(path.name, path, float(value["created"]), str(value["why"]), total, dict(value["counts"]))


def verify(path: Path) -> Backup:
    """Hash every file of a backup.

    Raises:
        WorkspaceError: something is missing, extra or changed.
    """
    backup = read(path)
    files = {name: FileHash(**file) for name, file in _manifest(path)["files"].items()}
    try:
        difference = first_difference(path, files)
    except OSError as error:
        difference = f"{error.filename} cannot be read ({error.strerror})"
    if difference is not None:
        raise _damaged(path, difference)
    return backup


def restore(workspace: Workspace, backup: Backup, now: float, fs: FileSystem = OS) -> Path:
    """Put a backup's database and config back. No process may have the database open: hold the HostLock.

    What was there before, damaged or not, is first copied byte by byte into backups/; its folder is
    returned. Killed at any point, the same call again completes it. Runs and weights are not touched.

    Raises:
        WorkspaceError: the backup is damaged, or the disk is full; the state is then as it was.
    """
    verify(backup.path)
    if not (backup.path / STATE).is_file():
        raise WorkspaceError(
            f"the backup {backup.name} holds no {STATE}",
            "a backup of a SQLite database",
            "a PostgreSQL server is restored with its own tools; the rows can be read in rows.jsonl",
        )
    aside = _set_aside(workspace, now, fs)
    try:
        if (config := backup.path / config_path(workspace).name).is_file():
            _replace(config, config_path(workspace), fs)
        # The log of the old database must be gone before the new one has its name: SQLite would replay it.
        for suffix in ("-wal", "-shm"):
            fs.remove_tree(workspace.database.with_name(workspace.database.name + suffix))
        fs.fsync(workspace.root)
        _replace(backup.path / STATE, workspace.database, fs)
    except OSError as error:
        raise WorkspaceError(
            f"the backup could not be put back ({error.strerror})", "a working disk with space",
            f"free some space and restore again; the old state is in {aside}",
        ) from error  # fmt: skip
    flightlog.append(
        workspace.flight_log, "backup_restored", "", {"backup": backup.name, "before": aside.name}, now
    )
    return aside


def prune(workspace: Workspace, keep: int, now: float, fs: FileSystem = OS) -> list[str]:
    """Delete all but the newest `keep` backups (at least one) and the daily ones of two days; their names."""
    doomed = [
        backup
        for backup in list_backups(workspace)[max(1, keep) :]
        if backup.why != DAILY or now - backup.created > _TWO_DAYS
    ]
    for backup in doomed:
        trash = backup.path.with_name(f"{_STAGING}pruned-{backup.name}")
        fs.rename(backup.path, trash)
        fs.remove_tree(trash)
    return [backup.name for backup in doomed]


def _copy_database(connection: Connection, staging: Path) -> dict[str, int]:
    """A consistent copy through the open connection, checked; returns the rows of each table."""
    if connection.dialect.name != "sqlite":
        return _copy_rows(connection, staging)
    driver = connection.connection.dbapi_connection
    assert driver is not None
    copy = sqlite3.connect(staging / STATE)
    try:
        driver.backup(copy)
        # One file without a log beside it.
        copy.execute("PRAGMA journal_mode=DELETE")
        (finding,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise sqlite3.DatabaseError(f"the copy is damaged: {finding}")
        tables = [table.name for table in METADATA.sorted_tables]
        return {name: copy.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}  # noqa: S608
    finally:
        copy.close()


def _copy_rows(connection: Connection, staging: Path) -> dict[str, int]:
    """Every row of a server's tables as JSON lines, in one transaction: to read, not to put back."""
    counts = {}
    with transaction(connection), (staging / ROWS).open("w", encoding="utf-8") as file:
        for table in METADATA.sorted_tables:
            counts[table.name] = 0
            for row in connection.execute(select(table)).mappings():
                file.write(json_text({"table": table.name, "row": dict(row)}, indent=None) + "\n")
                counts[table.name] += 1
    return counts


def _lists(connection: Connection) -> str:
    """Versions and models as readable JSON: what a person looks up when all else is gone."""
    with transaction(connection):
        rows = {
            table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
            for table in (VERSIONS, MODELS)
        }
    return json_text(rows)


def _set_aside(workspace: Workspace, now: float, fs: FileSystem) -> Path:
    folder = backups_folder(workspace)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    staging = folder / f"{_STAGING}{secrets.token_hex(4)}"
    try:
        fs.mkdir(staging)
        for path in (workspace.database, *_logs(workspace), config_path(workspace)):
            if path.is_file():
                shutil.copyfile(path, staging / path.name, follow_symlinks=False)
        body = {"created": now, "why": _REPLACED, "counts": {}}
        files = {name: asdict(file) for name, file in hash_files(staging).items()}
        fs.write(staging / MANIFEST, json_text(sealed({**body, "files": files})).encode())
        fsync_tree(staging, fs=fs)
        target = _free(folder, f"{stamp}-replaced")
        fs.rename(staging, target)
        fs.fsync(folder)
    except OSError as error:
        raise WorkspaceError(
            f"the present state could not be set aside ({error.strerror})", "a working disk with space",
            "free some space; nothing was changed",
        ) from error  # fmt: skip
    return target


def _logs(workspace: Workspace) -> list[Path]:
    return [workspace.database.with_name(workspace.database.name + suffix) for suffix in ("-wal", "-shm")]


def _replace(source: Path, target: Path, fs: FileSystem) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    shutil.copyfile(source, temporary, follow_symlinks=False)
    temporary.chmod(0o600)
    fs.fsync(temporary)
    fs.rename(temporary, target)
    fs.fsync(target.parent)


def _free(folder: Path, name: str) -> Path:
    target, number = folder / name, 1
    while target.exists():
        number += 1
        target = folder / f"{name}-{number}"
    return target


def _manifest(path: Path) -> dict[str, Any]:
    try:
        with (path / MANIFEST).open("rb") as file:
            value = json.loads(file.read(_MAX_MANIFEST_BYTES + 1))
        if not isinstance(value, dict) or not is_sealed(value):
            raise ValueError("its own hash does not match")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"{MANIFEST} cannot be used ({error})") from None


def _damaged(path: Path, why: str) -> WorkspaceError:
    return WorkspaceError(
        f"the backup {path.name} is damaged: {why}", "the bytes of its manifest", "use another backup"
    )
