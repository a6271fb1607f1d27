"""Finding a job's processes by what they inherited, and ending exactly those."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scaler_wizard.jobs.sweep import environment_of, find_processes, is_alive, kill_all, send

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def sleeper(job: str, workspace: Path, *, session: bool = False) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **environment_of(job, workspace)}
    return subprocess.Popen(["sleep", "60"], env=environment, start_new_session=session)


@pytest.fixture
def others(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes of another job, of the same job elsewhere, and of no job."""
    processes = [
        sleeper("grow-0002", tmp_path),
        sleeper("grow-0001", tmp_path / "else"),
        subprocess.Popen(["sleep", "60"]),
    ]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def wait_for(job: str, workspace: Path, number: int) -> None:
    until = time.monotonic() + 10
    while len(find_processes(job, workspace)) != number:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_all_of_a_job_are_ended_and_nobody_else(
    tmp_path: Path, others: list[subprocess.Popen[bytes]]
) -> None:
    plain = sleeper("grow-0001", tmp_path)
    escaped = sleeper("grow-0001", tmp_path, session=True)
    wait_for("grow-0001", tmp_path, 2)
    killed = kill_all("grow-0001", tmp_path)
    assert {process.pid for process in killed} == {plain.pid, escaped.pid}
    assert all("sleep" in process.command for process in killed)
    assert (plain.wait(5), escaped.wait(5)) == (-signal.SIGKILL, -signal.SIGKILL)
    assert [process.poll() for process in others] == [None, None, None]
    assert kill_all("grow-0001", tmp_path) == ()


def test_a_process_that_keeps_forking_is_ended_too(tmp_path: Path) -> None:
    # The parent alone forks, and not for ever: what the sweep misses ends by itself.
    code = (
        "import os, time\n"
        "for _ in range(60):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid(); time.sleep(20); os._exit(0)\n"
        "    time.sleep(0.01)\n"
    )
    environment = {**os.environ, **environment_of("fork", tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        time.sleep(0.3)
        assert kill_all("fork", tmp_path)
        process.wait(10)
    assert find_processes("fork", tmp_path) == ()


def test_a_reused_process_id_is_not_signalled(tmp_path: Path) -> None:
    with sleeper("grow-0001", tmp_path):
        wait_for("grow-0001", tmp_path, 1)
        found = find_processes("grow-0001", tmp_path)[0]
        earlier = replace(found, started=found.started - 1)
        assert not send(earlier, signal.SIGKILL)
        assert not is_alive(earlier)
        assert is_alive(found)
        assert send(found, signal.SIGKILL)
    assert not is_alive(found)
