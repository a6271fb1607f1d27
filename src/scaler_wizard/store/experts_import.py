"""A bundle of experts from elsewhere into the workspace: copied, checked, published as a held version.

Two halves: `bring` copies what loras.json names, and nothing else, into a folder of the workspace, where it
can be tried; `publish_imported` makes a version of that folder. What was not measured here never goes into
service by itself. Torch-free; whether it can be loaded is the engine's matter.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection

from scaler_wizard.errors import ModelError, WrongStateError
from scaler_wizard.store import versions
from scaler_wizard.store.durable import OS, FileSystem, sha256_file
from scaler_wizard.store.experts_bundle import LORAS, Bundle, parts, read_bundle, write_bundle
from scaler_wizard.store.names import contained, safe_name
from scaler_wizard.store.records import Version
from scaler_wizard.store.version_files import (
    IMPORTED,
    MAX_DESCRIPTION,
    BaseReference,
    VersionManifest,
    read_manifest,
    stage_files,
)
from scaler_wizard.store.workspace import Workspace

NOT_MEASURED = "imported, not measured here"


@contextmanager
def bring(workspace: Workspace, folder: Path, base: str | None = None) -> Iterator[Bundle]:
    """The workspace's own copy of a bundle, verified where it lies; gone when the block ends.

    Args:
        folder: where loras.json lies.
        base: where its base model is on this machine, if not where loras.json says.

    Raises:
        ModelNotFoundError, ModelError: see `read_bundle`; or it does not say which weights its base has.
    """
    found = read_bundle(folder)
    if found.base_sha256 is None:
        raise ModelError(
            f"{folder / LORAS} does not say which weights its base has", "base_sha256",
            "export the bundle again: its experts belong on one base and no other",
        )  # fmt: skip
    target = workspace.root / IMPORTED / sha256_file(folder / LORAS)[:16]
    shutil.rmtree(target, ignore_errors=True)  # of an import that was killed
    try:
        try:
            target.mkdir(parents=True, mode=0o700)
            for part in parts(found):
                shutil.copytree(contained(folder, part.path), target / part.path, symlinks=True)
            write_bundle(replace(found, folder=target, base=base or found.base))
        except OSError as error:
            raise ModelError(
                f"{folder} could not be copied into the workspace ({error.strerror or error})",
                "a working disk with space", "free some space, then import it again",
            ) from None  # fmt: skip
        yield read_bundle(target)
    finally:
        shutil.rmtree(target, ignore_errors=True)
        with suppress(OSError):  # another import is under way
            target.parent.rmdir()


def publish_imported(
    connection: Connection, workspace: Workspace, name: str, folder: Path, now: float, fs: FileSystem = OS
) -> Version:
    """Make a brought bundle a held version of a name; the version that has these very bytes, where one has.

    Args:
        folder: below the workspace's folder for imports, as `bring` made it.

    Raises:
        WorkspaceError: an unsafe name, or a folder elsewhere.
        WrongStateError: the name is that of a model that goes on learning.
        ModelError: its bytes are not those of its loras.json, or the disk refuses.
    """
    lineage = safe_name(name, "name of a bundle")
    bundle = read_bundle(contained(workspace.root / IMPORTED, folder.name))
    for row in versions.list_versions(connection, lineage):
        if row.status != "deleted" and _kind(workspace, row) != "experts":
            raise WrongStateError(
                f'"{lineage}" is a model that learns, not a bundle of experts', "another name",
                "name one with --name",
            )  # fmt: skip
    before = versions.current(connection, lineage)
    draft = VersionManifest(
        lineage=lineage, kind="experts", base=BaseReference(None, bundle.base, bundle.base_sha256),
        parent=before.number if before else None, run=IMPORTED, sha256="",
        description=f"{len(bundle.labels)} experts, imported"[:MAX_DESCRIPTION], promote=False,
        reasons=(NOT_MEASURED,), metrics={"labels": list(bundle.labels), "imported": True}, created=now,
        files={},
    )  # fmt: skip
    staged = stage_files(workspace, bundle.folder, draft, fs)
    return versions.publish_staged(connection, workspace, staged, now, fs)


def _kind(workspace: Workspace, version: Version) -> str:
    with suppress(ModelError):
        return read_manifest(versions.folder_of(workspace, version)).kind
    return "experts"  # a damaged one: what it was stands in the way of nothing
