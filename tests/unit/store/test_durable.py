import errno
import json
import os
import random

import pytest

from scaler_wizard.errors import CheckpointError
from scaler_wizard.store.durable import (
    append_durable,
    fsync_tree,
    is_disk_full,
    json_text,
    sha256_file,
    write_atomic,
)
from scaler_wizard.store.faulty import LOSSES, FaultyFileSystem, SimulatedCrash


def test_write_atomic_replaces_and_leaves_no_temporary(tmp_path):
    target = tmp_path / "a.json"
    write_atomic(target, "old")
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("call", range(4))
def test_failed_write_atomic_raises_and_keeps_a_whole_file(tmp_path, fault, call):
    target = tmp_path / "a.json"
    target.write_bytes(b"old")
    fs = FaultyFileSystem(tmp_path, call, fault)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, fault))) as caught:
        write_atomic(target, "the new text", fs=fs)
    fs.close()
    assert caught.value.errno == getattr(errno, fault)
    assert target.read_bytes() == (b"old" if call < 3 else b"the new text")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("loss", LOSSES)
def test_write_atomic_survives_power_loss_at_every_call(tmp_path, loss):
    for call in range(5):
        tree = tmp_path / f"tree{call}"
        tree.mkdir()
        (tree / "a").write_bytes(b"old")
        fs = FaultyFileSystem(tree, call)
        crashed = False
        try:
            write_atomic(tree / "a", "new", fs=fs)
        except SimulatedCrash:
            crashed = True
        fs.power_loss(tmp_path / f"after{call}", loss, random.Random(7))
        fs.close()
        content = (tmp_path / f"after{call}" / "a").read_bytes()
        assert content in (b"old", b"new")
        if not crashed:
            assert content == b"new"
    assert not crashed  # the last round ran to the end: every call was enumerated


def test_power_loss_model_catches_a_missing_fsync(tmp_path):
    """The simulator itself: a bare write and rename is lost, or worse, leaves an empty file."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(b"old")
    fs = FaultyFileSystem(tree)
    fs.write(tree / ".tmp", b"new")
    fs.rename(tree / ".tmp", tree / "a")
    outcomes = set()
    for loss in LOSSES:
        fs.power_loss(tmp_path / loss, loss, random.Random(1))
        outcomes.add((tmp_path / loss / "a").read_bytes())
    fs.close()
    assert {b"old", b"new", b"", b"n", b"\0\0\0"} <= outcomes


def test_nothing_more_happens_after_a_simulated_crash(tmp_path):
    fs = FaultyFileSystem(tmp_path, 1)
    fs.mkdir(tmp_path / "a")
    for _ in range(2):
        with pytest.raises(SimulatedCrash):
            fs.mkdir(tmp_path / "b")
    fs.close()
    assert not (tmp_path / "b").exists()


def test_append_durable(tmp_path):
    append_durable(tmp_path / "log", "one")
    append_durable(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    with pytest.raises(ValueError, match="newline"):
        append_durable(tmp_path / "log", "a\nb")


def test_fsync_tree_reaches_every_file_and_directory_children_first(tmp_path):
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_text("x")
    fs = FaultyFileSystem(tmp_path)
    fsync_tree(tmp_path / "d", fs=fs)
    fs.close()
    assert fs.calls == ["fsync d/e/f", "fsync d/e", "fsync d"]


def test_is_disk_full_looks_through_the_chain():
    full = CheckpointError("x")
    full.__cause__ = OSError(errno.ENOSPC, "no space")
    assert is_disk_full(full)
    assert not is_disk_full(OSError(errno.EIO, "io"))
    assert not is_disk_full(None)


def test_json_text_is_strict():
    assert json.loads(json_text({"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, "ü")})) == {
        "a": None, "b": [None, 1.5], "c": [1, "ü"],
    }  # fmt: skip


def test_sha256_refuses_links(tmp_path):
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic links"):
        sha256_file(tmp_path / "link")
