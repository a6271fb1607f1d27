import contextlib
import errno
import json
import os
import time
from pathlib import Path

import pytest

from scaler_wizard.errors import CheckpointError, WorkspaceError
from scaler_wizard.store.checkpoint_files import MANIFEST, Checkpoint
from scaler_wizard.store.checkpoints import CheckpointStore, plan_retention
from scaler_wizard.store.durable import is_disk_full
from scaler_wizard.store.faulty import FaultyFileSystem
from scaler_wizard.store.rundir import RunDir


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(RunDir.create(tmp_path / "grow-0001", "grow"))


def commit(store, phase, content="w", step=1, kind="phase", **files):
    with store.stage(phase) as staging:
        (staging.path / "adapter").mkdir()
        (staging.path / "adapter" / "model.safetensors").write_text(content)
        for name, text in files.items():
            (staging.path / name).write_text(text)
        return staging.commit(step, {"loss": 1.5, "bad": float("nan")}, {"seed": 3}, kind)


def names(store):
    return list(store.head().chain)


def test_commit_writes_what_it_says(store):
    first = commit(store, "P0")
    second = commit(store, "P1", step=7)
    assert (first.name, second.name, second.parent) == ("P0-0001", "P1-0002", "P0-0001")
    assert store.verify(second) == second == store.checkpoint("P1")
    assert second.step == 7
    assert second.metrics == {"loss": 1.5, "bad": None}
    assert second.extra == {"seed": 3}
    assert list(second.files) == ["adapter/model.safetensors"]
    assert store.chain() == [first, second]
    assert not list(store.directory.glob(".staging*"))
    assert store.newest_verified().checkpoint == second


def test_a_phase_committed_again_replaces_the_chain_from_there_on(store):
    for phase in ("P0", "P1", "P2", "P3.1"):
        commit(store, phase)
    again = commit(store, "P1")
    assert names(store) == ["P0-0001", "P1-0005"]
    assert again.parent == "P3.1-0004"
    assert len(store.names()) == 5  # superseded, not deleted


def test_checkpoint_by_phase(store):
    for phase in ("P0", "P3.1", "P3.2"):
        commit(store, phase)
    for wanted in ("P3", 3, "3", "P3.2", "3.2"):
        assert store.checkpoint(wanted).phase == "P3.2"
    assert store.checkpoint("P3.1").phase == "P3.1"
    with pytest.raises(CheckpointError, match=r"one of P0, P3\.1, P3\.2"):
        store.checkpoint("P30")


def test_uncommitted_staging_is_discarded_and_an_empty_one_refused(store):
    with contextlib.suppress(RuntimeError), store.stage("P0") as staging:
        (staging.path / "x").write_text("x")
        raise RuntimeError
    assert store.names() == []
    with store.stage("P0") as staging, pytest.raises(CheckpointError, match="nothing was staged"):
        staging.commit(1)
    with store.stage("P0") as staging:
        (staging.path / "x").symlink_to("/etc/passwd")
        with pytest.raises(CheckpointError, match="link"):
            staging.commit(1)
    for bad in ("../P1", "a/b", "", "x" * 64):
        with pytest.raises(WorkspaceError):
            store.stage(bad)
    assert list(store.directory.iterdir()) == []


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_edit(path):
    path.write_text(path.read_text().replace('"step": 1', '"step": 2'))


def extend(path: Path) -> None:
    with path.open("a") as file:
        file.write("x")


DAMAGES = {
    "flip": lambda c: damage_flip(c / "adapter" / "model.safetensors"),
    "truncate": lambda c: os.truncate(c / "adapter" / "model.safetensors", 3),
    "extend": lambda c: extend(c / "adapter" / "model.safetensors"),
    "missing": lambda c: (c / "adapter" / "model.safetensors").unlink(),
    "extra": lambda c: (c / "more").write_text("x"),
    "link": lambda c: (c / "link").symlink_to("/etc/passwd"),
    "manifest gone": lambda c: (c / MANIFEST).unlink(),
    "manifest flip": lambda c: damage_flip(c / MANIFEST),
    "manifest edited": lambda c: damage_edit(c / MANIFEST),
    "all gone": lambda c: c.rename(c.parent.parent / "elsewhere"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_quarantined_and_the_previous_used(store, damage):
    first = commit(store, "P0", "weights " * 10)
    second = commit(store, "P1", "weights " * 10)
    DAMAGES[damage](second.path)
    with pytest.raises(CheckpointError, match=r"P1-0002|link"):
        store.verify(second)
    recovery = store.newest_verified()
    assert recovery.checkpoint == first
    assert [item.name for item in recovery.quarantined] == ["P1-0002"]
    assert names(store) == ["P0-0001"]
    quarantine = store.directory / ".quarantine"
    assert (
        json.loads((quarantine / "P1-0002.reason.json").read_text())["reason"]
        == recovery.quarantined[0].reason
    )
    assert (quarantine / "P1-0002").exists() == (damage != "all gone")
    assert store.newest_verified().quarantined == ()
    assert commit(store, "P1").name == "P1-0003"  # the number is never used again


def test_all_damaged_is_a_failure_every_time(store):
    for phase in ("P0", "P1"):
        damage_flip(commit(store, phase, "weights").path / "adapter" / "model.safetensors")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact"):
            CheckpointStore(RunDir(store.directory.parent)).newest_verified()
    (store.directory / "head.json").unlink()
    (store.directory / "head.mirror.json").unlink()
    with pytest.raises(CheckpointError, match="is intact"):
        store.newest_verified()


def test_nothing_committed_is_not_a_failure(store):
    assert store.newest_verified().checkpoint is None
    assert store.head().parent is None


def test_step_checkpoints(store):
    commit(store, "P0")
    steps = [commit(store, "P1", f"s{i}", step=i, kind="step") for i in (10, 20, 30)]
    assert store.head().step == steps[2].name
    assert store.newest_verified().checkpoint == steps[2]
    damage_flip(steps[2].path / "adapter" / "model.safetensors")
    assert store.newest_verified().checkpoint == steps[1]
    done = commit(store, "P1", step=40)
    assert store.head().step is None
    assert store.newest_verified().checkpoint == done
    assert names(store) == ["P0-0001", done.name]


def test_prune_deletes_superseded_steps_only(store):
    commit(store, "P0")
    for i in range(5):
        commit(store, "P1", f"s{i}", step=i, kind="step")
    assert store.prune() == ["P1-0002", "P1-0003", "P1-0004"]
    done = commit(store, "P1")
    commit(store, "P2")
    assert store.prune() == ["P1-0005", "P1-0006"]
    assert store.names() == ["P0-0001", done.name, "P2-0008"]
    assert store.newest_verified().checkpoint.name == "P2-0008"


def fake(name, kind, parent=None):
    return Checkpoint(name, None, name.split("-")[0], kind, 0, 0.0, parent, {}, {}, {}, "")


def test_plan_retention_keeps_phases_the_last_two_and_what_is_referenced():
    checkpoints = [fake("P0-0001", "phase")] + [fake(f"P1-000{i}", "step") for i in range(2, 9)]
    checkpoints.append(fake("P2-0009", "phase", parent="P1-0004"))
    doomed = plan_retention(checkpoints, frozenset({"P1-0003"}), keep_steps=0)
    assert doomed == ["P1-0002", "P1-0005", "P1-0006", "P1-0007"]
    assert plan_retention(checkpoints, frozenset(), keep_steps=99) == []


def test_rollback_and_undo(store):
    for phase in ("P0", "P1", "P2"):
        commit(store, phase)
    commit(store, "P3", kind="step")
    before = store.head()
    result = store.rollback("P1")
    assert result.message == "Rollback complete; you are now at phase 1"
    assert names(store) == ["P0-0001", "P1-0002"]
    assert store.head().steps == ()
    assert store.newest_verified().checkpoint == result.checkpoint
    once = store.head()
    assert store.rollback(1).checkpoint == result.checkpoint
    assert store.head() == once  # asked twice, done once
    store.rollback(0)
    assert store.undo_rollback().checkpoint.phase == "P1"
    assert store.undo_rollback().checkpoint.phase == "P2"
    assert (store.head().chain, store.head().steps) == (before.chain, before.steps)
    with pytest.raises(CheckpointError, match="no rollback"):
        store.undo_rollback()


def test_rollback_refuses_a_damaged_target_and_changes_nothing(store):
    target = commit(store, "P0", "weights")
    commit(store, "P1")
    damage_flip(target.path / "adapter" / "model.safetensors")
    before = store.head()
    with pytest.raises(CheckpointError, match=r"content of adapter/model\.safetensors has changed"):
        store.rollback(0)
    assert store.head() == before


def test_rollback_of_adapters_takes_less_than_a_second(store):
    for phase in ("P0", "P1"):
        with store.stage(phase) as staging:
            (staging.path / "adapter_model.safetensors").write_bytes(os.urandom(5 << 20))
            staging.commit(1)
    start = time.perf_counter()
    assert store.rollback("P0").seconds < 1.0
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("damage", [b"", b"{", None])
def test_a_damaged_head_is_read_from_its_mirror_so_that_a_rollback_stays(store, damage):
    for phase in ("P0", "P1"):
        commit(store, phase)
    store.rollback(0)
    head = store.head()
    path = store.directory / "head.json"
    damage_flip(path) if damage is None else path.write_bytes(damage)
    assert store.head() == head
    (store.directory / "head.mirror.json").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"head\.json"):
        store.head()
    recovery = store.newest_verified()
    assert recovery.head_rebuilt
    assert recovery.checkpoint.name == "P1-0002"  # from the manifests alone: the newest
    assert names(store) == ["P0-0001", "P1-0002"]


def test_a_head_with_names_that_lead_elsewhere_is_not_believed(store):
    from scaler_wizard.store.checkpoint_head import Head, read_head, write_head
    from scaler_wizard.store.durable import OS

    write_head(store.directory, Head(chain=("../../evil-0001",)), OS)
    assert read_head(store.directory) is None


def test_full_disk_is_told_and_the_earlier_checkpoints_stay(tmp_path):
    run = RunDir.create(tmp_path / "r-0001", "r")
    first = commit(CheckpointStore(run), "P0")
    fs = FaultyFileSystem(run.checkpoints, fail_at=1, fault="ENOSPC")
    with pytest.raises(CheckpointError, match="free some space") as caught:
        commit(CheckpointStore(run, fs), "P1")
    fs.close()
    assert is_disk_full(caught.value)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert CheckpointStore(run).newest_verified().checkpoint == first
    assert commit(CheckpointStore(run), "P1").parent == first.name
