import contextlib
import sqlite3
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, text

from scaler_wizard.errors import WorkspaceBusyError, WorkspaceError
from scaler_wizard.store.database import Database, newest_version, schema_version, transaction
from scaler_wizard.store.tables import METADATA, RUN_EVENTS, RUNS

RUN = {
    "id": "r", "uuid": "u", "name": "n", "recipe": "grow", "status": "queued",
    "priority": 0, "not_before": 0.0, "job": {}, "job_hash": "h", "created": 1.0, "updated": 1.0,
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


def damaged(path):
    original = path.read_bytes()
    with pytest.raises(WorkspaceError, match="nothing was overwritten"):
        Database.open(path)
    return path.read_bytes() == original


def test_migrations_make_exactly_the_tables(path):
    with Database.open(path) as database, database.session() as connection, transaction(connection):
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        assert schema_version(connection) == newest_version()


def test_settings(path):
    with Database.open(path) as database, database.session() as connection, transaction(connection):
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert settings == ["wal", 2, 1]  # 2 is FULL


def test_opening_twice_keeps_the_data(path):
    for expected in (0, 1):
        with Database.open(path) as database, database.session() as connection, transaction(connection):
            assert connection.execute(text("SELECT count(*) FROM runs")).scalar() == expected
            if not expected:
                connection.execute(insert(RUNS).values(RUN))


def test_a_newer_schema_is_refused_with_its_version_and_untouched(path):
    Database.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("UPDATE alembic_version SET version_num='0099'")
    connection.close()
    original = path.read_bytes()
    with pytest.raises(WorkspaceError, match=rf"schema version 0099.*at most {newest_version()}"):
        Database.open(path)
    assert path.read_bytes() == original


def test_another_programs_database_is_refused_and_untouched(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (id)")
    connection.close()
    original = path.read_bytes()
    with pytest.raises(WorkspaceError, match=r"another program .*photos"):
        Database.open(path)
    assert path.read_bytes() == original


def test_damaged_files_are_refused_with_advice_and_untouched(path):
    path.write_bytes(b"this is not a database, it is a letter\n" * 200)
    assert damaged(path)
    path.unlink()
    Database.open(path).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    assert damaged(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert damaged(path)


def test_unusable_path(tmp_path):
    with pytest.raises(WorkspaceError, match="cannot be used"):
        Database.open(tmp_path / "none" / "state.db")


def test_locked_by_another_program(path):
    Database.open(path).close()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(WorkspaceBusyError, match="locked by another program"):
        Database.open(path, lock_timeout=0.1)
    releaser = threading.Timer(0.3, other.close)
    releaser.start()
    Database.open(path, lock_timeout=10).close()  # backs off, and goes on when the other is done
    releaser.join()


def test_a_failed_transaction_leaves_nothing(path):
    with Database.open(path) as database, database.session() as connection:
        with contextlib.suppress(ZeroDivisionError), transaction(connection):
            connection.exec_driver_sql("CREATE TABLE extra (id)")
            raise ZeroDivisionError
        with transaction(connection):
            tables = connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars().all()
    assert "runs" in tables
    assert "extra" not in tables


def test_threads_take_turns(path):
    with Database.open(path) as database:
        with database.session() as connection, transaction(connection):
            connection.execute(insert(RUNS).values(RUN))

        def work():
            for _ in range(10):
                with database.session() as connection, transaction(connection):
                    connection.execute(insert(RUN_EVENTS).values(run_id="r", time=0.0, kind="k", data={}))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with database.session() as connection, transaction(connection):
            assert connection.execute(text("SELECT count(*) FROM run_events")).scalar() == 40
