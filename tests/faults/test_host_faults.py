"""The host under faults from outside: a worker that wakes up too late, a reboot, a reused process id, a
locked or damaged database. Real processes, the real socket, the real database."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaler_wizard.errors import WorkspaceBusyError
from scaler_wizard.jobs.host import Host, hosting
from scaler_wizard.jobs.service import Service
from scaler_wizard.jobs.sweep import kill_all
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store import attempts, backup, queries
from scaler_wizard.store import records as rows
from scaler_wizard.store.lock import boot_id
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.workspace import Workspace

PYTHON = sys.executable
QUICK_WORKER = Path(__file__).with_name("quick_worker.py")
STALE = """
import os, sys
from pathlib import Path
from scaler_wizard.errors import WrongStateError
from scaler_wizard.runs.link import HostLink

folder, socket, run = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
os.closerange(3, 1024)  # both locks among them
link = HostLink(socket, run, 1)
assert link.request("phase_started", phase="P0") is not None
(folder / "stale.pid").write_text(str(os.getpid()))
while not (folder / "go").exists():
    pass
try:
    link.request("phase_done", phase="P0", checkpoint="P0-0001", metrics={"loss": 0.0})
    said = "accepted"
except WrongStateError:
    said = "fenced"
(folder / "said").write_text(said)
"""


def config(**limits: float) -> ContinualConfig:
    return ContinualConfig.model_validate(
        {
            "model": {"base_model": "seedling"}, "watchdog": limits,
            "disk": {"refuse_below_gb": 0, "warn_below_gb": 0, "ballast_mb": 0},
            "queue": {"restarts": 1, "restart_window_sec": 300},
        }
    )  # fmt: skip


@pytest.fixture
def short_workspace() -> Iterator[Workspace]:
    """A socket's address has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        yield Workspace.create(Path(folder) / "w")


@pytest.fixture
def run(harness: ModuleType, short_workspace: Workspace, tmp_path: Path) -> Iterator[RunDir]:
    """A queued run; no process of it outlives the test."""
    path = harness.write_tasks(tmp_path / "a.jsonl", (1,))
    found: RunDir = harness.drop(short_workspace, harness.continual_config(tmp_path), path)
    yield found
    kill_all(found.id, short_workspace.root)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """workers(script) puts a shell script in the interpreter's place for workers that start from now on."""

    def use(text: str) -> None:
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return use


def until(ready: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    limit = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < limit, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)
    return found


def dispatching(host: Host) -> Callable[[], None]:
    """The daemon's tick, on the host's own thread."""
    host.service.add_operations({"tick": lambda request: {"said": str(host.service.dispatch())}})
    return lambda: host.call("tick") and None


def test_a_worker_that_escaped_every_kill_is_refused_when_it_wakes(
    short_workspace: Workspace, run: RunDir, workers: Callable[[str], None], tmp_path: Path
) -> None:
    """Stopped, replaced, continued: its report over the real socket carries an old token."""
    code = tmp_path / "stale.py"
    code.write_text(STALE)
    source = os.environ.get("PYTHONPATH", "")
    # Without its environment and its locks, in a session of its own: nothing can tell whose process it is.
    workers(
        f'case "$*" in *"--attempt 1 "*) setsid env -i PYTHONPATH="{source}" {PYTHON} {code} {tmp_path} '
        f"{short_workspace.socket} {run.id} >{tmp_path}/stale.log 2>&1 & ;; esac\nexec sleep 60"
    )
    with hosting(short_workspace, config(load=30.0, step=0.5)) as host:
        tick = dispatching(host)
        tick()
        until(lambda: (tmp_path / "stale.pid").exists(), (tmp_path / "stale.log").read_text)
        pid = int((tmp_path / "stale.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: tick() or attempts_of(host, run) == 2, "its replacement")
            os.kill(pid, signal.SIGCONT)
            (tmp_path / "go").touch()
            assert until(lambda: (tmp_path / "said").exists() and (tmp_path / "said").read_text(), "its word")
            assert (tmp_path / "said").read_text() == "fenced"
            shown = host.call("show", run=run.id)
            assert [phase["status"] for phase in shown["phases"]] != ["done"]
        finally:
            (tmp_path / "go").touch()
            os.kill(pid, signal.SIGKILL)
            kill_all(run.id, short_workspace.root)
            until(lambda: not host.call("alive", run=run.id)["alive"], "the last worker's end")


def attempts_of(host: Host, run: RunDir) -> int:
    return len(host.call("show", run=run.id)["attempts"])


def left_running(workspace: Workspace, run: RunDir, boot: str) -> None:
    """The rows of a run whose host and worker are gone, as a host of that boot left them.

    Its host's process id belongs to somebody else by now: to this test.
    """
    with Service(workspace) as service, service.database.session() as connection:
        if queries.get_run(connection, run.id).status != RunStatus.QUEUED:
            queries.set_status(connection, run.id, RunStatus.QUEUED, time.time())
        attempt = attempts.start_attempt(
            connection, run.id, rows.Host("here", os.getpid(), boot), time.time()
        )
        queries.set_status(connection, run.id, RunStatus.RUNNING, time.time(), token=attempt.number)


def test_reboots_count_as_no_crash_and_a_reused_process_id_is_nobodys(
    short_workspace: Workspace, run: RunDir, workers: Callable[[str], None]
) -> None:
    """The kernel's locks and boot ids decide; a power cut a day must not use up a run's restarts."""
    workers("exit 1")
    for number in range(3):
        left_running(short_workspace, run, f"boot-{number}")
        with Service(short_workspace, config()) as service:
            assert service.workers.recover() == [run.id]
            shown = service.handle({"op": "show", "run": run.id})
            assert shown["attempts"][0]["outcome"] == "rebooted"
            assert shown["status"] == "queued", "back in the queue, whatever the number of reboots"
    left_running(short_workspace, run, boot_id())
    with Service(short_workspace, config()) as service:
        service.workers.recover()
        shown = service.handle({"op": "show", "run": run.id})
        assert shown["attempts"][0]["outcome"] == "interrupted", "within this boot it was a crash"


def test_a_database_that_is_locked_for_a_workers_whole_life(
    short_workspace: Workspace, run: RunDir, workers: Callable[[str], None]
) -> None:
    """Requests are refused after the timeout (30 s; here 0.1), the worker goes on, and nothing is lost."""
    workers(f'shift 2\nexec {PYTHON} {QUICK_WORKER} "$@"')
    with hosting(short_workspace) as host:
        with host.service.database.session() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=100")
            connection.rollback()
        host.call("start", run=run.id)
        other = sqlite3.connect(short_workspace.root / "state.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(WorkspaceBusyError, match="locked by another program"):
            host.call("command", run=run.id, action="pause")
        until(run.exit_status, "the worker's own end")
        assert host.call("alive", run=run.id)["alive"], "it cannot be noted yet"
        other.rollback()
        other.close()
        until(lambda: not host.call("alive", run=run.id)["alive"], "the host to catch up")
        shown = host.call("show", run=run.id)
    assert shown["status"] == "completed", shown
    assert [phase["status"] for phase in shown["phases"]] == ["done"] * 3
    assert len((run.path / "starts.txt").read_text().splitlines()) == 1


def scaler(workspace: Workspace, *arguments: str) -> tuple[int, str]:
    """A command's exit code and what it said."""
    done = subprocess.run(
        [PYTHON, "-m", "scaler_wizard.cli.main", *arguments, "-w", str(workspace.root)],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_damaged_database_stops_the_daemon_and_a_backup_starts_it(
    short_workspace: Workspace, run: RunDir
) -> None:
    (short_workspace.root / "config.yaml").write_text("model:\n  base_model: seedling\n")
    with Service(short_workspace) as service, service.database.session() as connection:
        backup.create(connection, short_workspace, "a test", time.time())
    path = short_workspace.root / "state.db"
    damaged = path.read_bytes()[:4096] + os.urandom(20_000)
    path.write_bytes(damaged)
    code, said = scaler(short_workspace, "daemon", "start")
    assert code != 0
    assert "is damaged" in said
    assert "restore a backup" in said
    assert path.read_bytes() == damaged, "nothing was overwritten"
    code, said = scaler(short_workspace, "backup", "restore", "latest", "--yes")
    assert code == 0, said
    code, said = scaler(short_workspace, "runs", "list")
    assert code == 0, said
    assert run.id in said


def test_a_newer_schema_is_refused_with_its_version(short_workspace: Workspace, run: RunDir) -> None:
    (short_workspace.root / "config.yaml").write_text("model:\n  base_model: seedling\n")
    path = short_workspace.root / "state.db"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num='0099'")
    connection.close()
    code, said = scaler(short_workspace, "daemon", "start")
    assert code != 0
    assert "schema version 0099" in said
    assert "update Scaler Wizard" in said
