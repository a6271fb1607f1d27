"""The host's operations on versions, config, backups and retention: whatever keeps a workspace in order.

Each risky one makes a backup first and leaves a line in the flight log. What they mean is in `store` and
`safety`; here they are looked up, ordered and written down.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from scaler_wizard.errors import ModelNotFoundError, SpecError, WrongStateError
from scaler_wizard.jobs import retention
from scaler_wizard.jobs.known_names import check_names
from scaler_wizard.jobs.standing import load_config
from scaler_wizard.safety.contract import job_hash
from scaler_wizard.safety.retention import RetentionPlan
from scaler_wizard.specs.continual import LEARNING_SECTIONS, LOCKED, ContinualConfig, RetentionSection
from scaler_wizard.store import backup, config, flightlog, versions
from scaler_wizard.store.config import Difference
from scaler_wizard.store.database import Database, transaction
from scaler_wizard.store.experts_import import publish_imported
from scaler_wizard.store.records import Version
from scaler_wizard.store.tables import RUNS
from scaler_wizard.store.version_files import version_name
from scaler_wizard.store.workspace import Workspace

Answer = dict[str, Any]


class Maintenance:
    """One workspace's upkeep. The caller holds the workspace's lock."""

    def __init__(self, workspace: Workspace, database: Database) -> None:
        self.workspace = workspace
        self.database = database
        self.operations: dict[str, Callable[[Answer], Answer]] = {
            "versions": self._versions,
            "version_restore": self._version_restore,
            "version_delete": self._version_delete,
            "experts_import": self._experts_import,
            "config_set": self._config_set,
            "config_last_run": self._config_last_run,
            "backup_create": self._backup_create,
            "retention": self._retention,
            "health_facts": self._health_facts,
            "tidy": self._tidy,
        }

    # Versions

    def _versions(self, request: Answer) -> Answer:
        """{lineage?} -> {versions: [row, with its name and whether something needs it]}."""
        lineage = request.get("lineage")
        with self.database.session() as connection:
            rows = versions.list_versions(connection, None if lineage is None else str(lineage))
            return {"versions": [self._row(connection, row) for row in rows]}

    def _row(self, connection: Connection, version: Version) -> Answer:
        needed = None
        if version.status != "deleted":
            needed = versions.needed_by(connection, self.workspace, version)
        folder = str(versions.folder_of(self.workspace, version))
        return {**asdict(version), "name": version_name(version.number), "needed": needed, "folder": folder}

    def _version_restore(self, request: Answer) -> Answer:
        """{lineage?, version, by, reason} -> {message}: an earlier version becomes current again."""
        with self.database.session() as connection:
            wanted = self._version(connection, request)
            before = versions.current(connection, wanted.lineage)
            self._backup(connection, "restore version")
            now = versions.restore(connection, self.workspace, wanted.lineage, wanted.number)
        data = {"lineage": now.lineage, "from": before.number if before else None, "to": now.number}
        self._note("version_restored", request, data)
        return {"message": f"{now.lineage} stands at {version_name(now.number)} again; nothing was deleted"}

    def _version_delete(self, request: Answer) -> Answer:
        """{lineage?, version, by, reason} -> {message}."""
        with self.database.session() as connection:
            wanted = self._version(connection, request)
            self._backup(connection, "delete version")
            gone = versions.delete(connection, self.workspace, wanted.lineage, wanted.number)
        self._note("version_deleted", request, {"lineage": gone.lineage, "version": gone.number})
        return {"message": f"{gone.lineage} {version_name(gone.number)} is deleted; its number stays taken"}

    def _experts_import(self, request: Answer) -> Answer:
        """{lineage, folder, by} -> the row of a held version: a bundle that was brought here."""
        name, folder = str(request.get("lineage")), Path(str(request.get("folder")))
        with self.database.session() as connection:
            version = publish_imported(connection, self.workspace, name, folder, time.time())
            row = self._row(connection, version)
        data = {"lineage": version.lineage, "version": version.number, "sha256": version.sha256}
        self._note("experts_imported", request, data)
        return row

    def _version(self, connection: Connection, request: Answer) -> Version:
        lineages = sorted({row.lineage for row in versions.list_versions(connection)})
        lineage = request.get("lineage") or (lineages[0] if len(lineages) == 1 else None)
        if lineage is None:
            found = f"{len(lineages)} lineages ({', '.join(lineages[:5])})" if lineages else "no version yet"
            raise ModelNotFoundError(found, "the lineage's name", "name one with --lineage")
        text = str(request.get("version", "")).removeprefix("v")
        if not text.isdecimal() or len(text) > 9:
            raise SpecError(f'"{text[:40]}" is no version', "a name like v003", "see `scaler models list`")
        return versions.get(connection, str(lineage), int(text))

    # Config

    def _config_set(self, request: Answer) -> Answer:
        """{key, value, unlock, reason, by} -> {key, before, after, sign_again, backup, message}."""
        key, value = str(request.get("key")), request.get("value")
        before = config.load(self.workspace)
        old = config.value_at(before, key)
        check_names(config.check_change(self.workspace, key, value))
        is_locked = False
        with self.database.session() as connection:
            last = last_job(connection)
            if key in LOCKED and last is not None:
                # Against what was learned with: a key that was changed by hand can be unlocked as it is.
                learned = config.flatten(last[1]).get(key, old)
                is_locked = not _same(self.workspace, key, value, learned)
                if is_locked:
                    self._check_unlock(key, learned, request)
            saved = self._backup(connection, "unlock config" if is_locked else "config")
            after = config.change(self.workspace, key, value)
        if key == config.SECRET:  # addresses hold passwords, and the flight log is for others to read
            old = value = config.HIDDEN
        data = {"key": key, "from": old, "to": value, "backup": saved}
        self._note("config_unlocked" if is_locked else "config_changed", request, data)
        sign_again = after.contract is None or job_hash(after) != after.contract.job_hash
        message = f"{key}: {old} -> {value}"
        if sign_again and key.partition(".")[0] in LEARNING_SECTIONS:
            message += "; a learning section changed: sign again with `scaler daemon sign`"
        return {**data, "sign_again": sign_again, "before": old, "after": value, "message": message}

    def _check_unlock(self, key: str, old: Any, request: Answer) -> None:
        if not request.get("unlock"):
            raise WrongStateError(
                f"{key} is locked since the first run: versions before and after would not fit",
                f"its value {old}", "if you mean it: --unlock --reason TEXT (a backup is made first)",
            )  # fmt: skip
        if not str(request.get("reason") or "").strip():
            raise WrongStateError(f"{key} was to be unlocked without a reason", "--reason TEXT", "say why")

    def _config_last_run(self, request: Answer) -> Answer:
        """{} -> {run, differences}: what the config says otherwise than the last run that learned a file."""
        now = config.load(self.workspace)
        with self.database.session() as connection:
            last = last_job(connection)
        if last is None:
            return {"run": None, "differences": []}
        run, job = last
        learning = {name: job[name] for name in LEARNING_SECTIONS if name in job}
        mine = now.model_dump(mode="json", by_alias=True, include=set(LEARNING_SECTIONS))
        return {"run": run, "differences": [asdict(item) for item in config.differences(learning, mine)]}

    # Backups and retention

    def _backup_create(self, request: Answer) -> Answer:
        """{why} -> {backup}."""
        with self.database.session() as connection:
            return {"backup": self._backup(connection, str(request.get("why") or "by hand"))}

    def _backup(self, connection: Connection, why: str) -> str:
        keep = settings(self.workspace).backups
        return backup.create(connection, self.workspace, why, time.time(), keep).name

    def _retention(self, request: Answer) -> Answer:
        """{dry_run, by} -> {message, deletions, kept, deleted, backup}."""
        section = settings(self.workspace)
        with self.database.session() as connection:
            decided = retention.plan(connection, self.workspace, section, time.time())
            answer = describe(decided)
            if request.get("dry_run") or not decided.deletions:
                return {**answer, "deleted": []}
            answer["backup"] = self._backup(connection, "retention")
        gone = retention.carry_out(self.workspace, decided)
        self._note("retention", request, {"deleted": gone, "bytes": decided.used_bytes - decided.after_bytes})
        return {**answer, "deleted": gone}

    # Health

    def _health_facts(self, request: Answer) -> Answer:
        """{} -> what the database says: {database, runs, versions, locked, orphans, sweepable}."""
        with self.database.session() as connection:
            with transaction(connection):
                statuses = {
                    row.id: row.status for row in connection.execute(select(RUNS.c.id, RUNS.c.status))
                }
            rows = [self._row(connection, row) for row in versions.list_versions(connection)]
            locked: list[Difference] = []
            with contextlib.suppress(SpecError):  # a config that cannot be read is another finding
                locked = refused_changes(connection, self.workspace, load_config(self.workspace))
            found = [
                f"{path.parent.name} {path.name}" for path, _ in versions.orphans(connection, self.workspace)
            ]
        leftovers = [
            f"{row['lineage']} {row['name']}"
            for row in rows
            if row["status"] == "deleted" and Path(row["folder"]).is_dir()
        ]
        return {
            "database": self.database.quick_check(), "runs": statuses, "versions": rows,
            "locked": [asdict(item) for item in locked], "orphans": found, "sweepable": leftovers,
        }  # fmt: skip

    def _tidy(self, request: Answer) -> Answer:
        """{} -> {done}: remove files of deleted versions; enter versions that no row knows, as held."""
        with self.database.session() as connection:
            done = [f"removed the files of {name}" for name in versions.sweep(connection, self.workspace)]
            for path, manifest in versions.orphans(connection, self.workspace):
                held = replace(manifest, promote=False, reasons=(*manifest.reasons, "found without a row"))
                versions.insert_version(
                    connection, self.workspace, held, int(path.name.removeprefix("v")), manifest.created
                )
                done.append(f"entered {path.parent.name} {path.name} as held")
        if done:
            self._note("tidied", request, {"done": done})
        return {"done": done}

    def _note(self, kind: str, request: Answer, data: Answer) -> None:
        said = {
            "by": str(request.get("by") or "a person")[:255],
            "reason": str(request.get("reason") or "")[:2000],
        }
        flightlog.append(self.workspace.flight_log, kind, "", {**data, **said})


def describe(decided: RetentionPlan) -> Answer:
    """A retention plan as plain data."""
    deletions = [
        {"name": item.entry.name, "bytes": item.entry.n_bytes, "reason": item.reason}
        for item in decided.deletions
    ]
    return {
        "message": decided.words(), "deletions": deletions, "kept": dict(decided.kept),
        "used_bytes": decided.used_bytes, "limit_bytes": decided.limit_bytes,
    }  # fmt: skip


def settings(workspace: Workspace) -> RetentionSection:
    """The retention section; the defaults where there is no config (a workspace that only grows models)."""
    if not config.config_path(workspace).exists():
        return RetentionSection()
    return config.load(workspace).retention


def last_job(connection: Connection) -> tuple[str, dict[str, Any]] | None:
    """(id, job) of the newest run that learned a file, of whatever lineage: its name is locked too."""
    query = (
        select(RUNS.c.id, RUNS.c.job)
        .where(RUNS.c.recipe == "continual")
        .order_by(RUNS.c.created.desc(), RUNS.c.id.desc())
        .limit(1)
    )
    with transaction(connection):
        row = connection.execute(query).first()
    return None if row is None else (row.id, dict(row.job))


def refused_changes(
    connection: Connection, workspace: Workspace, wanted: ContinualConfig
) -> list[Difference]:
    """Locked keys that were changed in the file by hand, without `scaler config set --unlock`.

    A key that was unlocked after the lineage's last run, to the value that it has now, is not among them.
    """
    last = last_job(connection)
    if last is None:
        return []
    created = _created(connection, last[0])
    unlocked = {
        entry["data"].get("key"): entry["data"].get("to")
        for entry in flightlog.read_entries(workspace.flight_log)
        if entry.get("kind") == "config_unlocked" and float(entry.get("time", 0)) >= created
    }
    return [
        item
        for item in config.locked_changes(last[1], wanted)
        if item.key not in unlocked or not _same(workspace, item.key, unlocked[item.key], item.after)
    ]


def _same(workspace: Workspace, key: str, written: Any, learned: Any) -> bool:
    """Whether a value as a person wrote it is the one of a job, whose local paths are absolute."""
    if key == "model.base_model" and isinstance(written, str) and written != learned:
        written = str((workspace.root / Path(written).expanduser()).resolve())
    return bool(written == learned)


def _created(connection: Connection, run: str) -> float:
    with transaction(connection):
        return float(connection.execute(select(RUNS.c.created).where(RUNS.c.id == run)).scalar_one())
