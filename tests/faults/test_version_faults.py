"""Every way the publishing of a model version can be cut short, on the real code and a real database.

The database is on another "disk" than the fault: its commit is publishing's last step. After each crash and
each legal state of the disk the same result is published again, as a restarted host does.
"""

import os
import random
import shutil
import tempfile
from itertools import count
from pathlib import Path

import pytest

from scaler_wizard.errors import ModelError
from scaler_wizard.store import versions
from scaler_wizard.store.database import Database
from scaler_wizard.store.faulty import LOSSES, FaultyFileSystem, SimulatedCrash
from scaler_wizard.store.queries import create_run
from scaler_wizard.store.records import NewRun
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.version_files import verify
from scaler_wizard.store.workspace import Workspace

SEED = int(os.environ.get("SCALER_FAULT_SEED", random.SystemRandom().randrange(1 << 32)))
RESULT = {
    "version": {"description": "a file about birds", "promote": True, "metrics": {"accuracy": 0.5}},
    "export": {"adapter": "export/adapter"},
}


@pytest.fixture
def workdir(tmp_path):
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="scaler-faults-", dir=memory))
    yield path
    shutil.rmtree(path)


def prepared(root):
    """A workspace with one run that exported an adapter; returns nothing, the disk is the state."""
    workspace = Workspace.create(root)
    run = workspace.new_run_dir("birds")
    (run.export / "adapter").mkdir()
    (run.export / "adapter" / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    (run.export / "adapter" / "adapter_config.json").write_text("{}")
    run.write_parent({"lineage": "assistant", "version": None, "base": "seedling", "base_version": None})


def database_of(path):
    database = Database.open(path)
    with database.session() as connection:
        create_run(connection, NewRun("birds-0001", "u", "birds", "continual", {}, "h"), 1.0)
    return database


def publish(root, connection, fs=None):
    workspace = Workspace(root)
    run = RunDir(workspace.runs / "birds-0001", *([fs] if fs else []))
    return versions.publish(connection, workspace, run, RESULT, 2.0)


def check_whole(root, connection):
    (version,) = versions.list_versions(connection)
    assert (version.number, version.status) == (1, "current")
    manifest = verify(versions.folder_of(Workspace(root), version))
    assert manifest.sha256 == version.sha256
    assert (root / "models/assistant/v001/adapter/adapter_model.safetensors").read_bytes() == b"weights" * 100
    left = [path.name for path in (root / "models" / "assistant").iterdir()]
    assert left == ["v001"], left


def test_crash_and_power_loss_at_every_call(workdir, capsys):
    rng = random.Random(SEED)
    template = workdir / "template"
    prepared(template)
    number = 0
    for fault in ("crash", "torn_crash"):
        for call in count():
            tree = workdir / f"{fault}-{call}"
            shutil.copytree(template, tree)
            fs = FaultyFileSystem(tree, call, fault)
            with database_of(workdir / f"{fault}-{call}.db") as database, database.session() as connection:
                try:
                    publish(tree, connection, fs)
                    acknowledged = True
                except SimulatedCrash:
                    acknowledged = False
                assert len(versions.list_versions(connection)) == acknowledged
            for index, loss in enumerate(LOSSES):
                after, copy = workdir / "after", workdir / f"{fault}-{call}-{index}.db"
                fs.power_loss(after, loss, rng)
                shutil.copy(workdir / f"{fault}-{call}.db", copy)
                with Database.open(copy) as database, database.session() as connection:
                    if acknowledged:
                        check_whole(after, connection)
                    publish(after, connection)
                    check_whole(after, connection)
                number += 1
                shutil.rmtree(after)
            fs.close()
            shutil.rmtree(tree)
            if acknowledged:
                break
    with capsys.disabled():
        print(f"\n[faults] publish: {number} states, 0 lost (seed {SEED})", end="")
    assert number > 100


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_failing_disk_at_every_call(fault, workdir):
    template = workdir / "template"
    prepared(template)
    for call in count():
        tree = workdir / str(call)
        shutil.copytree(template, tree)
        fs = FaultyFileSystem(tree, call, fault)
        with database_of(workdir / f"{call}.db") as database, database.session() as connection:
            try:
                publish(tree, connection, fs)
                succeeded = True
            except ModelError:
                assert versions.list_versions(connection) == ()
                succeeded = False
            publish(tree, connection)
            check_whole(tree, connection)
        fs.close()
        if succeeded:
            break
    assert call >= 8


def test_a_killed_deletion_leaves_no_row_without_files(workdir):
    """Deleting v001 after v002 was published, cut short at each call, then swept."""
    template = workdir / "template"
    prepared(template)
    with database_of(workdir / "template.db") as database, database.session() as connection:
        publish(template, connection)
        run = RunDir(template / "runs" / "birds-0001")
        (run.export / "adapter" / "adapter_model.safetensors").unlink()
        (run.export / "adapter" / "adapter_model.safetensors").write_bytes(b"better!")
        run.write_parent({"lineage": "assistant", "version": 1, "base": "seedling", "base_version": None})
        assert publish(template, connection).number == 2
    for call in count():
        tree = workdir / str(call)
        shutil.copytree(template, tree)
        shutil.copy(workdir / "template.db", workdir / f"{call}.db")
        fs = FaultyFileSystem(tree, call)
        with Database.open(workdir / f"{call}.db") as database, database.session() as connection:
            try:
                versions.delete(connection, Workspace(tree), "assistant", 1, fs)
            except SimulatedCrash:
                versions.sweep(connection, Workspace(tree))
            states = {row.number: row.status for row in versions.list_versions(connection)}
            assert states == {1: "deleted", 2: "current"}
        assert sorted(path.name for path in (tree / "models" / "assistant").iterdir()) == ["v002"]
        crashed = fs.crashed
        fs.close()
        if not crashed:
            break
    assert call >= 3
