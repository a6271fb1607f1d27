"""What one version of a model lineage is on disk: models/LINEAGE/vNNN with weights and a manifest.

    v003/adapter/       a LoRA lineage: the adapter alone; the manifest names the base that it belongs on
    v003/model/         a full lineage, or an adapter merged into a new base: the whole model
    v003/bundle/        experts behind a router (see `experts_bundle`); the manifest names their base
    v003/manifest.json  hashes, base, parent, run, description, metrics; sealed by its own hash

Stages, reads and checks these files. Numbers, and which version is current, are `versions`' matter.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scaler_wizard.errors import CheckpointError, ModelError, RunError
from scaler_wizard.store.checkpoint_files import (
    MANIFEST,
    FileHash,
    first_difference,
    hash_files,
    is_sealed,
    regular_files,
    sealed,
)
from scaler_wizard.store.durable import FileSystem, fsync_tree, json_text
from scaler_wizard.store.names import safe_name
from scaler_wizard.store.registry import hash_of_files
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

VersionKind = Literal["adapter", "full", "experts"]
WEIGHTS: dict[VersionKind, str] = {"adapter": "adapter", "full": "model", "experts": "bundle"}
MANIFEST_SCHEMA = 1
IMPORTED = "imported"
MAX_DESCRIPTION = 500
_MAX_MANIFEST_BYTES = 16 << 20
_STAGING = ".staging-"
_NUMBERED = re.compile(r"v(\d{3,9})")


@dataclass(frozen=True)
class BaseReference:
    """The model that an adapter belongs on: a version of the same lineage, or a model from outside."""

    version: int | None
    path: str
    """From outside: as `planning.locate.resolve_model` takes it. A version's: its name."""
    weights_sha256: str | None
    """As the worker measured it (`models.hashing.weights_sha256`)."""


@dataclass(frozen=True)
class VersionManifest:
    """manifest.json of a version."""

    lineage: str
    kind: VersionKind
    base: BaseReference | None
    """None for a whole model."""
    parent: int | None
    """Number of the version it was trained from."""
    run: str
    """The run that made it; `IMPORTED` for a bundle from elsewhere."""
    sha256: str
    """Content hash of the weights' folder, as `registry.content_hash` computes it."""
    description: str
    promote: bool
    reasons: tuple[str, ...]
    """Why it was promoted or held, in words."""
    metrics: Mapping[str, Any]
    created: float
    files: Mapping[str, FileHash]


@dataclass(frozen=True)
class StagedVersion:
    """Files that wait to become a version."""

    path: Path
    manifest: VersionManifest


def version_name(number: int) -> str:
    """v001, v002..."""
    return f"v{number:03d}"


def numbered_folders(lineage_folder: Path) -> dict[int, Path]:
    """Folders of versions on disk, by number."""
    if not lineage_folder.is_dir():
        return {}
    found = {}
    for path in lineage_folder.iterdir():
        match = _NUMBERED.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            found[int(match[1])] = path
    return found


def stage(workspace: Workspace, run_dir: RunDir, result: Mapping[str, Any], now: float) -> StagedVersion:
    """Bring a run's exported weights into models/LINEAGE/.staging-*, hashed and durable.

    No database is needed: the slow part of publishing can be done in a thread of its own.

    Args:
        result: result.json: {"version": {"description", "promote", "reasons", "metrics"}, "export":
            {"adapter" | "full" | "experts": folder in the run directory}, "model": {"weights_sha256"}}.

    Raises:
        RunError: the result or parent.json does not say what is needed, or names a folder outside.
        ModelError: the export holds links, or the disk is full or failing.
    """
    parent = run_dir.parent()
    if parent is None:
        raise RunError(f"run {run_dir.id} has no parent.json", "a run that was started", "start it again")
    kind, source = _exported(run_dir, result)
    said = result.get("version") or {}
    draft = VersionManifest(
        lineage=safe_name(str(parent["lineage"]), "lineage"), kind=kind,
        base=None if kind == "full" else _base(parent, result), parent=parent["version"], run=run_dir.id,
        sha256="", description=" ".join(str(said.get("description") or run_dir.id).split())[:MAX_DESCRIPTION],
        promote=bool(said.get("promote", False)), created=now, files={},
        reasons=tuple(str(reason)[:MAX_DESCRIPTION] for reason in said.get("reasons") or ()),
        metrics=dict(said.get("metrics") or {}),
    )  # fmt: skip
    return stage_files(workspace, source, draft, run_dir.fs)


def stage_files(workspace: Workspace, source: Path, draft: VersionManifest, fs: FileSystem) -> StagedVersion:
    """Bring a folder of weights into models/LINEAGE/.staging-*, hashed and durable.

    Args:
        draft: the manifest without hashes.

    Raises:
        ModelError: the folder holds links, or the disk is full or failing.
    """
    folder = workspace.models / draft.lineage
    staging = folder / f"{_STAGING}{draft.run}-{secrets.token_hex(4)}"
    try:
        if not folder.is_dir():
            fs.mkdir(folder)
            fs.fsync(workspace.models)
        for leftover in folder.glob(f"{_STAGING}{draft.run}-*"):
            fs.remove_tree(leftover)
        fs.mkdir(staging)
        _copy(source, staging / WEIGHTS[draft.kind], fs)
        files = hash_files(staging)
        manifest = replace(draft, sha256=_weights_hash(draft.kind, files), files=files)
        fs.write(staging / MANIFEST, manifest_bytes(manifest))
        fsync_tree(staging, fs=fs)
    except (OSError, CheckpointError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(
            f"the new version of {draft.lineage} could not be stored ({why})",
            "a working disk with space, and plain files",
            "free some space; it is tried again, the trained weights are in the run's export",
        ) from error
    return StagedVersion(staging, manifest)


def manifest_bytes(manifest: VersionManifest) -> bytes:
    """manifest.json, sealed by its own hash."""
    body = {**vars(manifest), "schema": MANIFEST_SCHEMA, "reasons": list(manifest.reasons)}
    body["base"] = vars(manifest.base) if manifest.base else None
    body["files"] = {name: vars(file) for name, file in manifest.files.items()}
    return json_text(sealed(body)).encode()


def read_manifest(folder: Path) -> VersionManifest:
    """The manifest of a version; its files are not looked at.

    Raises:
        ModelError: missing, damaged or of a newer format.
    """
    try:
        with (folder / MANIFEST).open("rb") as file:
            value = json.loads(file.read(_MAX_MANIFEST_BYTES + 1))
        if not isinstance(value, dict) or not is_sealed(value):
            raise ValueError("its own hash does not match")
        if value.pop("schema") != MANIFEST_SCHEMA:
            raise ValueError(f"this program reads format {MANIFEST_SCHEMA}")
        del value["digest"]
        files = {str(name): FileHash(str(f["sha256"]), int(f["bytes"])) for name, f in value["files"].items()}
        base = BaseReference(**value["base"]) if value["base"] else None
        if value["kind"] not in WEIGHTS:
            raise ValueError(f"kind {value['kind']!r}")
        return VersionManifest(**{**value, "files": files, "base": base, "reasons": tuple(value["reasons"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise _damaged(folder, f"{MANIFEST} cannot be used ({why})") from None


def verify(folder: Path) -> VersionManifest:
    """Hash every file of a version and return its manifest.

    Raises:
        ModelError: a file is missing, extra, changed or unreadable.
    """
    manifest = read_manifest(folder)
    try:
        difference = first_difference(folder, manifest.files)
    except OSError as error:
        difference = f"{error.filename} cannot be read ({error.strerror})"
    except CheckpointError as error:
        difference = error.found
    if difference is not None:
        raise _damaged(folder, difference)
    return manifest


def _exported(run_dir: RunDir, result: Mapping[str, Any]) -> tuple[VersionKind, Path]:
    export = result.get("export") or {}
    for kind in WEIGHTS:
        if export.get(kind):
            path = Path(run_dir.path, str(export[kind])).resolve()
            if path.is_dir() and path.is_relative_to(run_dir.path.resolve()):
                return kind, path
            raise RunError(
                f"the result of run {run_dir.id} names {export[kind]}", "a folder inside the run directory",
                "run it again",
            )  # fmt: skip
    raise RunError(f"run {run_dir.id} exported no weights", "an adapter, experts or a model", "run it again")


def _base(parent: Mapping[str, Any], result: Mapping[str, Any]) -> BaseReference:
    measured = (result.get("model") or {}).get("weights_sha256") or parent.get("base_sha256")
    number = parent.get("base_version")
    path = str(parent["base"]) if number is None else version_name(int(number))
    return BaseReference(number, path, measured)


def _weights_hash(kind: VersionKind, files: Mapping[str, FileHash]) -> str:
    prefix = f"{WEIGHTS[kind]}/"
    return hash_of_files((name.removeprefix(prefix), file.sha256) for name, file in files.items())


def _copy(source: Path, target: Path, fs: FileSystem) -> None:
    """Hard links where the file system has them (a whole model twice is a disk full), else copies."""
    fs.mkdir(target)
    for name, _ in regular_files(source):
        place = target / name
        for parent in reversed(place.relative_to(target).parents[:-1]):
            if not (target / parent).is_dir():
                fs.mkdir(target / parent)
        try:
            os.link(source / name, place, follow_symlinks=False)
        except OSError:
            shutil.copyfile(source / name, place, follow_symlinks=False)


def _damaged(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"version {folder.parent.name} {folder.name} is damaged: {why}",
        "the bytes of its manifest",
        "restore an earlier version with `scaler models restore`; nothing was deleted",
    )
