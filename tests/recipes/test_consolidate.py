"""A lineage before and after its adapter was merged: the same answers, a fresh adapter on the new base."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from scaler_wizard.errors import ContractNotAcceptedError, ModelNotFoundError, WrongStateError
from scaler_wizard.jobs import consolidation, lineage
from scaler_wizard.jobs.service import Service
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store import queries, versions
from scaler_wizard.store.records import Version
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.version_files import read_manifest
from scaler_wizard.store.workspace import Workspace

NAME = "assistant"


class Lineage:
    """What the host does around each run of a lineage, with the real worker in this process."""

    def __init__(self, harness: ModuleType, workspace: Workspace, config: ContinualConfig) -> None:
        self.harness = harness
        self.workspace = workspace
        self.config = config

    def drop(self, name: str, levels: tuple[int, ...], rows: int) -> RunDir:
        """Queue a file of letter tasks, with its copy where the intake puts it."""
        path = self.harness.write_tasks(self.workspace.inbox / f"{name}.jsonl", levels, rows)
        run: RunDir = self.harness.drop(self.workspace, self.config, path)
        (run.path / "input").mkdir()
        shutil.copy(path, run.path / "input")
        return run

    def start(self, run: RunDir) -> None:
        """Note where it starts from."""
        with Service(self.workspace) as service, service.database.session() as connection:
            row = queries.get_run(connection, run.id)
            lineage.note_parent(connection, self.workspace, row, run)

    def complete(self, run: RunDir) -> Version:
        """Run it and publish its version."""
        self.start(run)
        assert self.harness.attempt(run) == 0, run.exit_status()
        with Service(self.workspace) as service, service.database.session() as connection:
            version = lineage.publish(connection, self.workspace, run)
        assert version is not None
        return version

    def ask(self) -> RunDir:
        """Queue the merge of the current version."""
        with Service(self.workspace) as service:
            queued = consolidation.queue_consolidation(
                self.workspace, self.config, lambda op, **fields: service.handle({"op": op, **fields})
            )
        return self.workspace.run_dir(queued.run)

    def is_due(self, after: int) -> bool:
        """Whether the daemon would ask by itself."""
        retention = self.config.retention.model_copy(update={"consolidate_after": after})
        config = self.config.model_copy(update={"retention": retention})
        with Service(self.workspace) as service, service.database.session() as connection:
            return consolidation.is_due(connection, versions.list_versions(connection, NAME), config)

    def status(self, run: RunDir) -> RunStatus:
        """Of a run, in the database."""
        with Service(self.workspace) as service, service.database.session() as connection:
            return queries.get_run(connection, run.id).status


@pytest.fixture
def line(harness: ModuleType, workspace: Workspace, tmp_path: Path) -> Lineage:
    settings = {"max_steps": 15, "batch_tokens": 512, "micro_batch_tokens": 512}
    config = harness.continual_config(
        tmp_path, training=settings, lineage={"lora": {"rank": 8, "alpha": 16}, "vocabulary": ["Reverse:"]}
    )
    return Lineage(harness, workspace, config)


def answers(line: Lineage, run: RunDir, phase: str) -> Any:
    return line.harness.phase_metrics(run)[phase]["answers"]["right"]


def test_a_merged_version_answers_as_before_and_the_next_file_stands_on_it(
    line: Lineage, harness: ModuleType
) -> None:
    first = line.drop("a", (1, 2), 400)
    one = line.complete(first)
    assert [line.is_due(after) for after in (0, 1, 2)] == [False, True, False]

    merge = line.ask()
    assert not line.is_due(1), "asked for once"
    with pytest.raises(WrongStateError, match=merge.id):
        line.ask()
    two = line.complete(merge)
    assert (two.number, two.status, two.parent_id) == (2, "current", one.id)
    assert two.metrics["consolidated"] is True
    assert two.metrics["comparison"]["top1_agreement"] == 1.0
    assert two.metrics["comparison"]["mean_abs"] < 1e-4
    whole = read_manifest(line.workspace.models / NAME / "v002")
    assert (whole.kind, whole.base) == ("full", None)
    assert not line.is_due(1)
    with pytest.raises(WrongStateError, match="whole model"):
        line.ask()

    # The same rows again: what was held out is the same, too.
    second = line.drop("b", (1, 2), 400)
    three = line.complete(second)
    parent = second.parent()
    assert parent is not None
    assert (parent["base_version"], parent["adapter"], len(parent["replay"])) == (2, None, 1)
    # What the adapter answered at the end of the first file is what the merged base answers now.
    assert not harness.phase_metrics(second)["P0"]["reused"]
    assert answers(line, second, "P0") == answers(line, first, "P2")
    before = harness.phase_metrics(first)["P2"]["held_out_losses"]
    assert harness.phase_metrics(second)["P0"]["held_out_losses"] == pytest.approx(before, rel=1e-4)
    found = read_manifest(line.workspace.models / NAME / "v003")
    assert found.base is not None
    assert (three.status, found.kind, found.base.version) == ("current", "adapter", 2)
    assert line.is_due(1)


def test_a_killed_merge_goes_on_from_its_reference(line: Lineage, harness: ModuleType) -> None:
    first = line.drop("a", (1,), 40)
    line.complete(first)
    merge = line.ask()
    line.start(merge)
    # A folder that cannot be written: the first attempt ends between the phases.
    merge.export.rmdir()
    merge.export.write_text("in the way")
    with pytest.raises(OSError, match="export"):
        harness.attempt(merge)
    assert list(harness.phase_metrics(merge)) == ["P0"]
    merge.export.unlink()
    merge.export.mkdir()
    assert harness.attempt(merge, 2) == 0
    notes = [event.text for event in harness.events(merge, "note")]
    assert sum("as reference" in text for text in notes) == 2, "measured once, at two lengths"
    assert any("merged against assistant v001" in text for text in notes)


def test_a_reference_that_the_merge_does_not_meet_is_an_error(line: Lineage, harness: ModuleType) -> None:
    line.complete(line.drop("a", (1,), 40))
    merge = line.ask()
    line.start(merge)
    merge.export.rmdir()
    merge.export.write_text("in the way")
    with pytest.raises(OSError, match="export"):
        harness.attempt(merge)
    merge.export.unlink()
    merge.export.mkdir()
    # Another adapter than the one that was measured.
    parent = merge.parent() or {}
    other = line.workspace.root / "other"
    shutil.copytree(parent["adapter"], other)
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: 30 * value for name, value in weights.items()}, other / "adapter_model.safetensors")
    merge.write_parent({**parent, "adapter": str(other)})
    assert harness.attempt(merge, 2) == 1
    status = merge.exit_status()
    assert status is not None
    assert "answers otherwise" in status.reason
    assert not list(merge.export.iterdir())


def test_a_merge_that_was_overtaken_is_skipped_and_a_restored_version_refuses_it(
    line: Lineage, harness: ModuleType
) -> None:
    with pytest.raises(ModelNotFoundError):
        line.ask()
    first = line.drop("a", (1,), 40)
    line.complete(first)
    merge = line.ask()
    second = line.drop("b", (2,), 40)
    assert line.complete(second).number == 2
    assert line.status(merge) == RunStatus.SKIPPED
    with pytest.raises(WrongStateError, match=r"stands at v002, and v001 was to be merged"):
        line.start(merge)


def test_an_unsigned_config_merges_nothing(line: Lineage) -> None:
    first = line.drop("a", (1,), 40)
    line.complete(first)
    replay = line.config.replay.model_copy(update={"fraction": 0.5})
    line.config = line.config.model_copy(update={"replay": replay})
    with pytest.raises(ContractNotAcceptedError):
        line.ask()
    assert [run.id for run in line.workspace.run_dirs()] == [first.id], "nothing is left behind"
