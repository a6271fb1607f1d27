"""Opening the state database: one connection, full sync, schema checked before anything is written.

SQLite by default, PostgreSQL by URL; the same tables and queries on both. Only the host process opens
the database (see `lock.HostLock`): SQLite before 3.51.3 has a WAL-reset bug that needs two connections.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import StaticPool

from scaler_wizard.errors import MissingDependencyError, ScalerError, WorkspaceBusyError, WorkspaceError
from scaler_wizard.store.durable import json_text

_MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_TIMEOUT_SECONDS = 30.0


class Database:
    """An open state database. `session` gives its one connection to one thread at a time."""

    def __init__(self, engine: Engine, connection: Connection) -> None:
        self._engine = engine
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def open(cls, where: Path | str, lock_timeout: float = LOCK_TIMEOUT_SECONDS) -> Self:
        """Open the SQLite file at a path, or the server at a URL, and bring its schema up to date.

        Args:
            lock_timeout: seconds to wait for another program that has the SQLite file locked.

        Raises:
            WorkspaceError: damaged, not a database of ours, or of a newer schema (names the version). The
                file is then untouched.
            WorkspaceBusyError: locked for longer than `lock_timeout`.
        """
        name = _shown(where)
        engine = _engine(where, lock_timeout)
        try:
            with _explained(name):
                connection = engine.connect()
                _check(connection, name)
                connection.rollback()
                if engine.dialect.name == "sqlite":
                    _sqlite_pragma(connection, "journal_mode=WAL")
                    _sqlite_pragma(connection, "synchronous=FULL")
                    connection.commit()
                _migrate(connection)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, connection)

    @contextlib.contextmanager
    def session(self) -> Iterator[Connection]:
        """The connection, for one or more calls of `queries`; other threads wait meanwhile."""
        with self._lock:
            yield self._connection

    def quick_check(self) -> str:
        """ "ok", or the first damage that SQLite finds in the file; always "ok" of a server."""
        with self._lock, _explained(str(self._engine.url)):
            if self._engine.dialect.name != "sqlite":
                return "ok"
            with self._connection.begin():
                return str(self._connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one())

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()
            self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Commit what the block did before it is left, or nothing of it.

    Inside another transaction it is a savepoint: the outer one commits, for all of them at once.

    Raises:
        WorkspaceBusyError, WorkspaceError: the database is locked, full or damaged.
    """
    begin = connection.begin_nested if connection.in_transaction() else connection.begin
    with _explained(str(connection.engine.url)), begin():
        yield


def schema_version(connection: Connection) -> str | None:
    """The schema's version in the database, None in an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_version() -> str:
    """The newest schema version that this program knows."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def _is_url(where: Path | str) -> bool:
    return isinstance(where, str) and "://" in where


def _shown(where: Path | str) -> str:
    """The database's name for messages, without a password."""
    return make_url(str(where)).render_as_string(hide_password=True) if _is_url(where) else str(where)


def _engine(where: Path | str, lock_timeout: float) -> Engine:
    if _is_url(where):
        url = make_url(str(where))
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        try:
            return create_engine(
                url, pool_size=1, max_overflow=0, pool_pre_ping=True, json_serializer=json_text
            )
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"the database {_shown(where)} needs a driver that is not installed ({error.name})",
                "the PostgreSQL driver", "pip install 'scaler-wizard[postgres]'",
            ) from error  # fmt: skip
    # SQLite would make the file by the umask, for others to read; a folder that is missing it tells itself.
    with contextlib.suppress(OSError):
        Path(where).touch(mode=0o600)
    engine = create_engine(
        f"sqlite:///{where}",
        poolclass=StaticPool,
        json_serializer=json_text,
        connect_args={"check_same_thread": False, "timeout": lock_timeout},
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        # The driver's own transactions start late and leave DDL out; ours start with BEGIN IMMEDIATE.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _sqlite_pragma(connection: Connection, setting: str) -> None:
    # Through the driver: a pragma inside a transaction is ignored, and the "begin" event opens one.
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.execute(f"PRAGMA {setting}")


def _check(connection: Connection, name: str) -> None:
    """Refuse a damaged, foreign or newer database, reading only."""
    if connection.dialect.name == "sqlite":
        findings = [row[0] for row in connection.exec_driver_sql("PRAGMA quick_check(1)")]
        if findings != ["ok"]:
            raise _damaged(name, str(findings[0]).splitlines()[0])
    tables = set(inspect(connection).get_table_names())
    version = schema_version(connection) if "alembic_version" in tables else None
    if version is None and tables - {"alembic_version"}:
        raise WorkspaceError(
            f"{name} is a database of another program (tables {', '.join(sorted(tables)[:5])})",
            "a state database of Scaler Wizard, or none",
            "choose another workspace or database",
        )
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if version is not None and version not in known:
        raise WorkspaceError(
            f"{name} has schema version {version}",
            f"at most {newest_version()}, the newest this program knows",
            "update Scaler Wizard, or open it with the version that wrote it",
        )


def _migrate(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    with connection.begin():
        command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except ScalerError:
        raise
    except OperationalError as error:
        text = str(error.orig)
        if "locked" in text or "busy" in text:
            raise WorkspaceBusyError(
                f"{name} is locked by another program", "one program at a time", "close it and try again"
            ) from error
        if "full" in text:
            raise WorkspaceError(
                f"no space left for {name}", "free disk space", "free some and resume"
            ) from error
        if "malformed" in text:
            raise _damaged(name, text) from error
        raise WorkspaceError(
            f"{name} cannot be used: {text}", "", "check its path and permissions"
        ) from error
    except DatabaseError as error:
        text = str(error.orig)
        if "malformed" in text or "not a database" in text:
            raise _damaged(name, text) from error
        raise


def _damaged(name: str, why: str) -> WorkspaceError:
    return WorkspaceError(
        f"{name} is damaged: {why}",
        "an intact state database",
        f"move {name} (with its -wal and -shm files) aside and restore a backup, or start without it: "
        "run directories and checkpoints do not depend on it; nothing was overwritten",
    )
