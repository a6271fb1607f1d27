"""Bundles from elsewhere: only what loras.json names comes in, as a held version, or nothing does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from scaler_wizard.errors import ModelError, WorkspaceError, WrongStateError
from scaler_wizard.store import versions
from scaler_wizard.store.database import Database
from scaler_wizard.store.durable import OS
from scaler_wizard.store.experts_bundle import (
    LORAS,
    ROUTER,
    Bundle,
    BundledLora,
    read_bundle,
    write_bundle,
)
from scaler_wizard.store.experts_import import NOT_MEASURED, bring, publish_imported
from scaler_wizard.store.faulty import Fault, FaultyFileSystem, SimulatedCrash
from scaler_wizard.store.records import Version
from scaler_wizard.store.registry import content_hash
from scaler_wizard.store.version_files import BaseReference, VersionManifest, stage_files, verify
from scaler_wizard.store.workspace import Workspace

WHEN = "2026-01-31T12:00:00+00:00"


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "w")


@pytest.fixture
def connection(space: Workspace) -> Iterator[Connection]:
    with Database.open(space.database) as database, database.session() as connection:
        yield connection


def part(folder: Path, place: str) -> str:
    (folder / place).mkdir(parents=True)
    (folder / place / "adapter_model.safetensors").write_bytes(place.encode())
    return content_hash(folder / place)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "given"
    loras = (
        BundledLora("a", "experts/a", "alora", part(place, "experts/a"), WHEN, twin="twins/a",
                    twin_sha256=part(place, "twins/a")),
        BundledLora("b", "experts/b", "lora", part(place, "experts/b"), WHEN),
    )  # fmt: skip
    write_bundle(Bundle(place, "seedling", "0" * 64, loras, None, part(place, ROUTER)))
    return place


def entered(connection: Connection, space: Workspace, folder: Path, name: str = "experts") -> Version:
    with bring(space, folder) as bundle:
        return publish_imported(connection, space, name, bundle.folder, 5.0)


def test_it_becomes_a_held_version_that_a_person_may_restore(
    connection: Connection, space: Workspace, folder: Path
) -> None:
    (folder / "notes.txt").write_text("not named in loras.json")
    (folder / "elsewhere").symlink_to("/etc")
    made = entered(connection, space, folder)
    place = versions.folder_of(space, made) / "bundle"
    assert (made.number, made.status, made.run_id) == (1, "held", None)
    assert made.metrics["reasons"] == [NOT_MEASURED]
    assert sorted(path.name for path in place.iterdir()) == ["experts", LORAS, ROUTER, "twins"]
    assert read_bundle(place).labels == ("a", "b")
    assert versions.current(connection, "experts") is None
    assert versions.restore(connection, space, "experts", 1).status == "current"
    assert not (space.root / "imported").exists()


def test_the_source_may_change_afterwards(connection: Connection, space: Workspace, folder: Path) -> None:
    made = entered(connection, space, folder)
    (folder / "experts" / "a" / "adapter_model.safetensors").write_bytes(b"changed in place")
    assert read_bundle(versions.folder_of(space, made) / "bundle").labels == ("a", "b")


def test_the_same_bytes_are_one_version_of_a_name(
    connection: Connection, space: Workspace, folder: Path
) -> None:
    first = entered(connection, space, folder)
    assert entered(connection, space, folder) == first
    exported = versions.folder_of(space, first) / "bundle"
    assert entered(connection, space, exported) == first
    assert entered(connection, space, folder, "others").lineage == "others"
    versions.delete(connection, space, "experts", 1)
    assert entered(connection, space, folder).number == 2


@pytest.mark.parametrize(
    ("changes", "expert", "words"),
    [
        ({}, {"sha256": "1" * 64}, "not those that were saved"),
        ({}, {"path": "../given/experts/a"}, "leads outside"),
        ({}, {"path": "/etc"}, "leads outside"),
        ({}, {"path": "experts"}, "another part of the bundle"),
        ({}, {"path": "experts/b"}, "one twice"),
        ({}, {"label": "b"}, "the label b stands there twice"),
        ({}, {"label": "base"}, "cannot be a label"),
        ({}, {"twin_sha256": None}, "twin without a content hash"),
        ({}, {"twin_sha256": "1" * 64}, "twin of a"),
        ({"router_sha256": "1" * 64}, {}, "the router"),
        ({"base_sha256": None}, {}, "which weights its base has"),
        ({"base_sha256": "x"}, {}, "no SHA-256"),
    ],
)
def test_a_hostile_bundle_leaves_nothing_behind(
    space: Workspace, folder: Path, changes: dict[str, Any], expert: dict[str, Any], words: str
) -> None:
    value = json.loads((folder / LORAS).read_text(encoding="utf-8"))
    value["loras"][0] |= expert
    (folder / LORAS).write_text(json.dumps(value | changes), encoding="utf-8")
    with pytest.raises(ModelError, match=words), bring(space, folder):
        pass
    assert not (space.root / "imported").exists()


def test_a_link_among_the_weights_is_refused(space: Workspace, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (folder / "experts" / "a" / "more.safetensors").symlink_to(tmp_path / "outside")
    with pytest.raises(ModelError, match="link"), bring(space, folder):
        pass


def test_what_was_not_brought_cannot_be_entered(
    connection: Connection, space: Workspace, folder: Path, tmp_path: Path
) -> None:
    for place in (folder, tmp_path, space.root / "imported" / ".."):
        with pytest.raises((ModelError, WorkspaceError)):
            publish_imported(connection, space, "experts", place, 5.0)
    with bring(space, folder) as bundle:
        with pytest.raises(WorkspaceError):
            publish_imported(connection, space, "../x", bundle.folder, 5.0)
        (bundle.folder / "experts" / "a" / "adapter_model.safetensors").write_bytes(b"swapped")
        with pytest.raises(ModelError, match="not those that were saved"):
            publish_imported(connection, space, "experts", bundle.folder, 5.0)
    assert versions.list_versions(connection) == ()


def test_a_name_of_a_model_that_learns_is_refused(
    connection: Connection, space: Workspace, folder: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    part(weights, "a")
    draft = VersionManifest(
        lineage="assistant", kind="adapter", base=BaseReference(None, "seedling", None), parent=None,
        run="r-0001", sha256="", description="", promote=True, reasons=(), metrics={}, created=1.0, files={},
    )  # fmt: skip
    staged = stage_files(space, weights / "a", draft, OS)
    versions.publish_staged(connection, space, staged, 1.0)
    with pytest.raises(WrongStateError, match="model that learns"):
        entered(connection, space, folder, "assistant")


def test_a_kill_at_any_call_ends_in_one_version(
    connection: Connection, space: Workspace, folder: Path
) -> None:
    for call in count():
        name = f"killed{call}"
        fs = FaultyFileSystem(space.root, call)
        with suppress(SimulatedCrash), bring(space, folder) as bundle:
            publish_imported(connection, space, name, bundle.folder, 5.0, fs)
        fs.close()
        made = entered(connection, space, folder, name)
        assert (made.number, entered(connection, space, folder, name)) == (1, made)
        assert verify(versions.folder_of(space, made)).sha256 == made.sha256
        assert [path.name for path in (space.models / name).iterdir()] == ["v001"]
        shutil.rmtree(space.models / name)  # the next call's file system need not look at it
        if not fs.crashed:
            break
    assert call >= 8


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_a_failing_disk_enters_nothing(
    connection: Connection, space: Workspace, folder: Path, fault: Fault
) -> None:
    fs = FaultyFileSystem(space.root, 3, fault)
    with pytest.raises(ModelError, match="free some space"), bring(space, folder) as bundle:
        publish_imported(connection, space, "experts", bundle.folder, 5.0, fs)
    fs.close()
    assert versions.list_versions(connection) == ()
