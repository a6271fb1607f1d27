"""Where a continual run starts from, and that it begins anew when that place has moved."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from scaler_wizard.jobs.lineage import note_parent, publish
from scaler_wizard.jobs.service import Service
from scaler_wizard.safety.contract import sign
from scaler_wizard.specs.continual import ContinualConfig, FileSection
from scaler_wizard.store import queries
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace


@pytest.fixture
def run_dir(workspace: Workspace, service: Service) -> RunDir:
    """A queued continual run."""
    config = sign(
        ContinualConfig.parse({"model": {"base_model": "seedling"}}), "A Person", None, None,
        datetime.now(UTC), "a sitting",
    )  # fmt: skip
    made = workspace.new_run_dir("rows")
    job = config.job("rows", FileSection(path="rows.jsonl", name="rows.jsonl", sha256="0" * 64))
    values = job.model_dump(mode="json", by_alias=True)
    service.handle({"op": "enqueue", "run": made.id, "job": values, "lineage": "assistant"})
    return made


def note(workspace: Workspace, service: Service, run_dir: RunDir) -> None:
    with service.database.session() as connection:
        note_parent(connection, workspace, queries.get_run(connection, run_dir.id), run_dir)


def test_the_first_run_starts_from_the_base_model(
    workspace: Workspace, service: Service, run_dir: RunDir
) -> None:
    note(workspace, service, run_dir)
    parent = run_dir.parent()
    assert parent is not None
    assert (parent["lineage"], parent["version"], parent["base"]) == ("assistant", None, "seedling")


def test_a_run_goes_on_where_it_stands_while_its_parent_is_current(
    workspace: Workspace, service: Service, run_dir: RunDir, commit_phases: Callable[..., None]
) -> None:
    note(workspace, service, run_dir)
    commit_phases(run_dir, "P0")
    note(workspace, service, run_dir)
    assert CheckpointStore(run_dir).head().parent is not None


def test_a_run_whose_parent_has_moved_begins_anew_and_keeps_what_it_had(
    workspace: Workspace, service: Service, run_dir: RunDir, commit_phases: Callable[..., None]
) -> None:
    note(workspace, service, run_dir)
    run_dir.write_parent({**(run_dir.parent() or {}), "version": 7, "sha256": "f" * 64})
    commit_phases(run_dir, "P0", "P1")
    kept = set(CheckpointStore(run_dir).names())
    note(workspace, service, run_dir)
    store = CheckpointStore(run_dir)
    assert store.chain() == []
    assert set(store.names()) == kept, "nothing is deleted"
    parent = run_dir.parent()
    assert parent is not None
    assert parent["version"] is None
    with service.database.session() as connection:
        kinds = [event.kind for event in queries.run_history(connection, run_dir.id)]
    assert kinds.count("begun_anew") == 1


def test_a_run_without_a_version_publishes_none(
    workspace: Workspace, service: Service, run_dir: RunDir
) -> None:
    run_dir.write_result({"summary": {}})
    with service.database.session() as connection:
        assert publish(connection, workspace, run_dir) is None
