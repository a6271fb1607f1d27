"""Versions on a real database and real folders: numbers, the current one, ways back, what protects what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from scaler_wizard.errors import ModelError, ModelNotFoundError, RunError, WrongStateError
from scaler_wizard.specs.continual import ContinualConfig, ContinualJob, FileSection
from scaler_wizard.store import registry, versions
from scaler_wizard.store.database import Database
from scaler_wizard.store.queries import create_run, set_status
from scaler_wizard.store.records import NewRun, Version
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.version_files import stage
from scaler_wizard.store.workspace import Workspace

Learn = Callable[..., Version]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "w")


@pytest.fixture
def connection(workspace: Workspace) -> Iterator[Connection]:
    with Database.open(workspace.database) as database, database.session() as connection:
        yield connection


def job_of(name: str) -> ContinualJob:
    config = ContinualConfig.parse({"model": {"base_model": "seedling"}})
    return config.job(name, FileSection(path=f"/x/{name}.jsonl", name=f"{name}.jsonl", sha256="0" * 64))


def started(connection: Connection, workspace: Workspace, name: str) -> RunDir:
    """A run whose file was copied in and whose parent was noted."""
    run = workspace.new_run_dir(name)
    (run.path / "input").mkdir()
    (run.path / "input" / f"{name}.jsonl").write_text("{}\n")
    job = job_of(name)
    new = NewRun(
        run.id, run.identity().uuid, name, "continual", job.model_dump(mode="json"), "h", lineage="assistant"
    )
    create_run(connection, new, run.created())
    run.write_parent(versions.parent_record(connection, workspace, job))
    return run


def finished(run: RunDir, kind: str = "adapter", promote: bool = True) -> dict[str, Any]:
    """The run's export and result, as its worker leaves them."""
    folder = run.export / kind
    folder.mkdir()
    (folder / "model.safetensors").write_text(f"weights of {run.id}")
    return {
        "version": {"description": f"learned {run.id}", "promote": promote, "metrics": {"accuracy": 0.5}},
        "export": {kind: f"export/{kind}"},
        "model": {"weights_sha256": "b" * 64},
    }


@pytest.fixture
def learn(connection: Connection, workspace: Workspace) -> Learn:
    def run_one(name: str, kind: str = "adapter", promote: bool = True) -> Version:
        run = started(connection, workspace, name)
        result = finished(run, kind, promote)
        return versions.publish(connection, workspace, run, result, 5.0)

    return run_one


def test_the_first_run_starts_from_the_config_s_model(connection: Connection, workspace: Workspace) -> None:
    parent = versions.parent_record(connection, workspace, job_of("a"))
    assert (parent["base"], parent["version"], parent["adapter"], parent["sha256"]) == (
        "seedling",
        None,
        None,
        None,
    )
    assert (parent["replay"], parent["lineage_runs"]) == ([], 0)


def test_each_file_goes_on_from_the_version_before(
    connection: Connection, workspace: Workspace, learn: Learn
) -> None:
    first, second = learn("a"), learn("b")
    parent = versions.parent_record(connection, workspace, job_of("c"))
    assert (first.number, second.number, second.parent_id) == (1, 2, first.id)
    assert [row.status for row in versions.list_versions(connection)] == ["current", "superseded"]
    assert parent["base"] == "seedling"
    assert parent["base_sha256"] == "b" * 64
    assert parent["sha256"] == registry.content_hash(Path(parent["adapter"]))
    assert [Path(path).name for path in parent["replay"]] == ["a.jsonl", "b.jsonl"]
    assert parent["lineage_runs"] == 2


def test_a_lost_input_is_named_and_not_replayed(
    connection: Connection, workspace: Workspace, learn: Learn
) -> None:
    learn("a")
    (workspace.runs / "a-0001" / "input" / "a.jsonl").unlink()
    parent = versions.parent_record(connection, workspace, job_of("b"))
    assert (parent["replay"], parent["replay_missing"]) == ([], ["a-0001"])


def test_a_whole_model_is_its_own_base(connection: Connection, workspace: Workspace, learn: Learn) -> None:
    learn("a")
    whole = learn("b", kind="full")
    parent = versions.parent_record(connection, workspace, job_of("c"))
    assert parent["base"] == str(versions.folder_of(workspace, whole) / "model")
    assert (parent["adapter"], parent["base_version"]) == (None, 2)
    on_top = learn("c")
    with pytest.raises(WrongStateError, match="v002 is the base of v003"):
        versions.delete(connection, workspace, "assistant", 2)
    assert versions.parent_record(connection, workspace, job_of("d"))["base_version"] == whole.number
    assert on_top.status == "current"


def test_publishing_twice_gives_one_version(connection: Connection, workspace: Workspace) -> None:
    run = started(connection, workspace, "a")
    result = finished(run)
    staged = stage(workspace, run, result, 5.0)
    first = versions.publish(connection, workspace, run, result, 5.0, staged)
    assert versions.publish(connection, workspace, run, result, 9.0) == first
    (run.export / "adapter" / "model.safetensors").unlink()
    (run.export / "adapter" / "model.safetensors").write_text("rolled back and trained again")
    assert versions.publish(connection, workspace, run, result, 9.0).number == 2


def test_a_held_version_is_kept_and_not_gone_on_from(
    connection: Connection, workspace: Workspace, learn: Learn
) -> None:
    learn("a")
    held = learn("b", promote=False)
    current = versions.current(connection, "assistant")
    assert current is not None
    assert (held.status, current.number) == ("held", 1)
    assert versions.parent_record(connection, workspace, job_of("c"))["lineage_runs"] == 1
    assert versions.restore(connection, workspace, "assistant", 2).status == "current"


def test_what_was_restored_meanwhile_is_not_overtaken(
    connection: Connection, workspace: Workspace, learn: Learn
) -> None:
    learn("a")
    learn("b")
    run = started(connection, workspace, "c")
    versions.restore(connection, workspace, "assistant", 1)
    late = versions.publish(connection, workspace, run, finished(run), 5.0)
    current = versions.current(connection, "assistant")
    assert current is not None
    assert (late.status, current.number) == ("held", 1)
    assert "changed while" in late.metrics["reasons"][0]


def test_restoring_verifies_every_byte(connection: Connection, workspace: Workspace, learn: Learn) -> None:
    first = learn("a")
    learn("b")
    (versions.folder_of(workspace, first) / "adapter" / "model.safetensors").write_text("weights of x-0001")
    with pytest.raises(ModelError, match=r"content of adapter/model\.safetensors has changed"):
        versions.restore(connection, workspace, "assistant", 1)
    current = versions.current(connection, "assistant")
    assert current is not None
    assert current.number == 2


def test_deleting_keeps_the_number_and_refuses_what_is_needed(
    connection: Connection, workspace: Workspace, learn: Learn
) -> None:
    learn("a")
    with pytest.raises(WrongStateError, match="v001 is the current version"):
        versions.delete(connection, workspace, "assistant", 1)
    learn("b")
    run = started(connection, workspace, "c")
    versions.restore(connection, workspace, "assistant", 1)
    with pytest.raises(WrongStateError, match=f"v002 is what run {run.id} started from"):
        versions.delete(connection, workspace, "assistant", 2)
    versions.publish(connection, workspace, run, finished(run), 5.0)
    set_status(connection, run.id, RunStatus.STOPPED, 6.0)
    assert versions.delete(connection, workspace, "assistant", 3).status == "deleted"
    assert not (workspace.models / "assistant" / "v003").exists()
    with pytest.raises(WrongStateError, match="was deleted"):
        versions.restore(connection, workspace, "assistant", 3)
    assert learn("d").number == 4


def test_a_result_that_names_a_folder_outside_is_refused(
    connection: Connection, workspace: Workspace, tmp_path: Path
) -> None:
    run = started(connection, workspace, "a")
    result = finished(run)
    (tmp_path / "evil").mkdir()
    for place in ("../../../evil", str(tmp_path / "evil"), "export/none"):
        with pytest.raises(RunError, match="inside the run directory"):
            versions.publish(connection, workspace, run, {**result, "export": {"adapter": place}}, 5.0)
    (run.export / "adapter" / "link").symlink_to("/etc/passwd")
    with pytest.raises(ModelError, match="link"):
        versions.publish(connection, workspace, run, result, 5.0)
    assert versions.list_versions(connection) == ()


def test_versions_that_no_row_knows_are_found(
    connection: Connection, workspace: Workspace, learn: Learn, tmp_path: Path
) -> None:
    learn("a")
    with Database.open(tmp_path / "older.db") as older, older.session() as before:
        ((path, manifest),) = versions.orphans(before, workspace)
        assert (path.name, manifest.run) == ("v001", "a-0001")
        run = workspace.run_dir("a-0001")
        create_run(before, NewRun(run.id, "u", "a", "continual", {}, "h"), 1.0)
        # The number of a folder without a row is not used again for other weights.
        (run.export / "adapter" / "model.safetensors").unlink()
        (run.export / "adapter" / "model.safetensors").write_text("other weights")
        result = {"version": {"promote": True}, "export": {"adapter": "export/adapter"}}
        assert versions.publish(before, workspace, run, result, 5.0).number == 2


def test_a_version_of_another_number_is_not_found(connection: Connection) -> None:
    with pytest.raises(ModelNotFoundError, match="no version v007"):
        versions.get(connection, "assistant", 7)
