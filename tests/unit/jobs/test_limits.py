"""A worker's heartbeat, memory and disk limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scaler_wizard.jobs.disk import disk_verdict
from scaler_wizard.jobs.heartbeats import WRITE_EVERY_SEC, Heartbeats, Sign
from scaler_wizard.jobs.memory import bind_memory, delegated_cgroup
from scaler_wizard.specs.continual import DiskSection
from scaler_wizard.store.oom_kills import oom_kills

MIB = 1 << 20


def test_a_heartbeat_is_kept_in_memory_and_written_now_and_then() -> None:
    beats = Heartbeats()
    assert not beats.note("a", 1, 100.0)
    assert beats.of("a") == Sign(1, "load", 100.0)
    assert not beats.note("a", 1, 100.0 + WRITE_EVERY_SEC - 0.1, "step")
    assert beats.note("a", 1, 100.0 + WRITE_EVERY_SEC)
    assert not beats.note("a", 1, 100.1 + WRITE_EVERY_SEC)
    assert beats.of("a") == Sign(1, "step", 100.1 + WRITE_EVERY_SEC), "the activity stays"
    beats.forget("a")
    assert beats.of("a") is None


def test_an_older_attempts_heartbeat_is_no_sign_of_the_newer() -> None:
    beats = Heartbeats()
    beats.note("a", 2, 100.0)
    beats.note("a", 1, 200.0, "step")
    assert beats.of("a") == Sign(2, "load", 100.0)
    beats.note("a", 3, 300.0)
    assert beats.of("a") == Sign(3, "load", 300.0), "a new attempt begins with loading"


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
def test_a_process_bound_from_outside_cannot_take_more(tmp_path: Path) -> None:
    code = (
        "import sys\nprint('up', flush=True)\nsys.stdin.readline()\n"
        "try:\n    held = bytearray(600 << 20)\nexcept MemoryError:\n    print('refused', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"
        bound = bind_memory(process.pid, "grow-0001", 300 * MIB, tmp_path / "no cgroup here")
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"refused\n"
        bound.release()


def test_a_cgroup_gets_the_limit_and_the_process(tmp_path: Path) -> None:
    # The kernel's files as ordinary ones: this is what is written where a cgroup is delegated to us.
    with subprocess.Popen(["sleep", "0.1"]) as process:
        bound = bind_memory(process.pid, "grow-0001", 300 * MIB, tmp_path)
    group = tmp_path / "scaler-grow-0001"
    assert bound.group == group
    assert (group / "memory.max").read_text() == str(300 * MIB)
    assert (group / "cgroup.procs").read_text() == str(process.pid)
    (group / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert oom_kills(group=group) == 2


def test_where_this_process_may_not_make_a_cgroup_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("4:memory:/x\n0::/scope\n")
    (tmp_path / "scope").mkdir()
    assert delegated_cgroup(tmp_path, tmp_path) is None
    (tmp_path / "scope" / "cgroup.subtree_control").write_text("cpu memory pids\n")
    assert delegated_cgroup(tmp_path, tmp_path) == tmp_path / "scope"


def test_disk_verdict_at_its_limits() -> None:
    section = DiskSection(refuse_below_gb=10, warn_below_gb=50)
    found = [disk_verdict(int(gb * 1e9), section) for gb in (0, 9.99, 10, 49.99, 50, 1000)]
    assert found == ["refuse", "refuse", "warn", "warn", "ok", "ok"]
