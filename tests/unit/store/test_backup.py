"""Backups of a real database: consistent, hashed, restored over a damaged one, cut short at every call."""

import os
import shutil
from itertools import count

import pytest

from scaler_wizard.errors import WorkspaceError
from scaler_wizard.store import backup, flightlog
from scaler_wizard.store.database import Database
from scaler_wizard.store.faulty import FaultyFileSystem, SimulatedCrash
from scaler_wizard.store.queries import create_run, list_runs
from scaler_wizard.store.records import NewRun
from scaler_wizard.store.workspace import Workspace


def add(connection, name):
    create_run(connection, NewRun(name, f"uuid of {name}", name, "continual", {}, "h"), 1.0)


@pytest.fixture
def workspace(tmp_path):
    """A workspace with one run in its database, backed up, and a second run after that."""
    space = Workspace.create(tmp_path / "w")
    (space.root / "config.yaml").write_text("model:\n  base_model: seedling\n")
    flightlog.append(space.flight_log, "test", "", {})
    with Database.open(space.database) as database, database.session() as connection:
        add(connection, "first")
        backup.create(connection, space, "by hand", 1000.0)
        add(connection, "second")
    return space


def runs(space):
    with Database.open(space.database) as database, database.session() as connection:
        return sorted(run.id for run in list_runs(connection))


def test_a_backup_holds_what_was_committed(workspace):
    (made,) = backup.list_backups(workspace)
    assert made.name == "19700101-001640-by-hand"
    assert made.counts["runs"] == 1
    assert backup.verify(made.path) == made
    assert {path.name for path in made.path.iterdir()} == {
        "state.db", "config.yaml", "flight_log.jsonl", "versions.json", "manifest.json"
    }  # fmt: skip


def damage(space):
    """Flip bytes in the middle of the database."""
    data = bytearray(space.database.read_bytes())
    data[4096:8192] = os.urandom(4096)
    space.database.write_bytes(data)


def test_a_damaged_database_is_restored_and_kept_aside(workspace):
    damage(workspace)
    damaged = workspace.database.read_bytes()
    with pytest.raises(WorkspaceError, match="damaged"):
        Database.open(workspace.database)
    aside = backup.restore(workspace, backup.find(workspace, "latest"), 2000.0)
    assert runs(workspace) == ["first"]
    assert (aside / "state.db").read_bytes() == damaged
    # What was set aside is never "latest", and can be put back by its name all the same.
    assert backup.find(workspace, "latest").why == "by hand"
    assert backup.verify(backup.find(workspace, aside.name).path).path == aside
    assert flightlog.read_entries(workspace.flight_log)[-1]["kind"] == "backup_restored"


def test_the_newer_log_of_the_old_database_is_not_replayed(workspace):
    """state.db-wal of a killed host holds a commit that the restored database must not see."""
    database = Database.open(workspace.database)
    with database.session() as connection:
        add(connection, "third")
    log = workspace.database.with_name("state.db-wal")
    assert log.stat().st_size > 0
    shutil.copy(log, workspace.root / "kept")
    database.close()
    shutil.copy(workspace.root / "kept", log)
    backup.restore(workspace, backup.find(workspace, "latest"), 2000.0)
    assert runs(workspace) == ["first"]


def test_a_damaged_backup_is_refused_before_anything_is_touched(workspace):
    made = backup.find(workspace, "latest")
    (made.path / "state.db").write_bytes(b"x")
    with pytest.raises(WorkspaceError, match="is damaged"):
        backup.restore(workspace, made, 2000.0)
    assert runs(workspace) == ["first", "second"]


@pytest.mark.parametrize("fault", ["crash", "torn_crash", "ENOSPC"])
def test_restoring_cut_short_is_completed_by_restoring_again(workspace, fault, tmp_path):
    for call in count():
        tree = Workspace(tmp_path / f"{call}")
        shutil.copytree(workspace.root, tree.root)
        fs = FaultyFileSystem(tree.root, call, fault)
        chosen = backup.find(tree, "19700101-001640-by-hand")
        try:
            backup.restore(tree, chosen, 2000.0, fs)
            hit = False
        except (SimulatedCrash, WorkspaceError):
            hit = True
            # Old or new, never half: and the same again completes it.
            assert runs(tree) in (["first"], ["first", "second"])
            backup.restore(tree, chosen, 3000.0)
        fs.close()
        assert runs(tree) == ["first"]
        if not hit:
            break
    assert call >= 10


@pytest.mark.parametrize("fault", ["crash", "ENOSPC"])
def test_a_backup_cut_short_is_not_there(workspace, fault, tmp_path):
    for call in count():
        tree = Workspace(tmp_path / f"{call}")
        shutil.copytree(workspace.root, tree.root)
        fs = FaultyFileSystem(tree.root, call, fault)
        with Database.open(tree.database) as database, database.session() as connection:
            try:
                backup.create(connection, tree, "again", 2000.0, fs=fs)
                hit = False
            except (SimulatedCrash, WorkspaceError):
                hit = True
            found = [item.name for item in backup.list_backups(tree) if backup.verify(item.path)]
            assert found[-1] == "19700101-001640-by-hand"
            assert len(found) in ((1, 2) if hit else (2,))
        fs.close()
        if not hit:
            break
    assert call >= 6


def test_only_the_newest_are_kept_and_the_daily_ones_of_two_days(workspace):
    with Database.open(workspace.database) as database, database.session() as connection:
        backup.create(connection, workspace, backup.DAILY, 200_000.0)
        for number in range(4):
            backup.create(connection, workspace, f"n {number}", 200_001.0 + number, keep=2)
        assert [item.why for item in backup.list_backups(workspace)] == ["n 3", "n 2", "daily"]
        backup.create(connection, workspace, "later", 400_000.0, keep=2)
    assert [item.why for item in backup.list_backups(workspace)] == ["later", "n 3"]


def test_unknown_names_are_refused(workspace):
    for name in ("../x", "none"):
        with pytest.raises(WorkspaceError):
            backup.find(workspace, name)
