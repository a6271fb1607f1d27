"""Starting a worker process, and reading how it ended.

A worker is its own session (a terminal's Ctrl-C does not reach it), inherits the locks of its run directory
and of its device, writes its output to worker.log, and is offline unless the job loads from the hub.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scaler_wizard.jobs.crash import Death, classify
from scaler_wizard.jobs.sweep import environment_of
from scaler_wizard.store.lock import DeviceLock, RunLock
from scaler_wizard.store.rundir import Outcome, RunDir
from scaler_wizard.store.workspace import DATABASE_VARIABLE

LOG_TAIL_BYTES = 16_384
FULL_BYTES = 1 << 16
ATTEMPT_MARK = b"=== attempt "
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
}
BUSY_SHARE = 0.5
"""Of the cores, used by others when a worker starts: from here on its threads sleep while they wait."""


@dataclass(frozen=True)
class Ending:
    """How an attempt ended. `clean` is False where the worker left no exit status of its own."""

    status: Outcome
    reason: str
    advice: str
    rollback_to: str | None = None
    clean: bool = True
    cause: str = ""


def start_worker(
    run_dir: RunDir, attempt: int, workspace: Path, socket: Path, device_lock: Path, *, offline: bool = True
) -> subprocess.Popen[bytes]:
    """Start one attempt. Both locks pass to the worker, so they last as long as any of its processes.

    Args:
        workspace: root of the workspace; with the run's id it marks every process of the job.
        device_lock: the lock file of the device it works on.

    Raises:
        WorkspaceBusyError: an earlier worker of this run, or another one on this device, is still alive.
    """
    environment = {
        **thread_waiting(os.environ, os.getloadavg()[0], os.cpu_count() or 1), **os.environ, **ENVIRONMENT,
        **environment_of(run_dir.id, workspace),
    }  # fmt: skip
    environment.pop(DATABASE_VARIABLE, None)  # only the host opens the database, and its URL holds a password
    if offline:
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [
        sys.executable, "-m", "scaler_wizard.recipes.worker", str(run_dir.path),
        "--run", run_dir.id, "--attempt", str(attempt), "--socket", str(socket),
    ]  # fmt: skip
    with (
        RunLock.acquire(run_dir.lock) as lock,
        DeviceLock.acquire(device_lock, f"run {run_dir.id}") as device,
        run_dir.worker_log.open("ab") as log,
    ):
        (run_dir.path / "exit_status.json").unlink(missing_ok=True)
        log.write(ATTEMPT_MARK + str(attempt).encode() + b"\n")
        log.flush()
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            start_new_session=True, pass_fds=[lock.fileno(), device.fileno()],
        )  # fmt: skip


def thread_waiting(environment: Mapping[str, str], load: float, cores: int) -> dict[str, str]:
    """How a worker's OpenMP threads wait for each other; nothing where the person has said it.

    Spinning is the fastest on an idle machine, and on a busy one it burns the time that the other threads
    need (`benchmarks/thread_waiting.py`). The results are the same bytes either way.

    Args:
        load: runnable processes in the mean of the last minute.
    """
    said = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & environment.keys()
    return {"OMP_WAIT_POLICY": "passive"} if load >= BUSY_SHARE * cores and not said else {}


def read_ending(
    run_dir: RunDir, attempt: int, returncode: int | None, *, killed_for: Literal["", "hung", "memory"] = "",
    killed_because: str = "", memory_kills: int = 0,
) -> Ending:  # fmt: skip
    """The attempt's own exit status, or the classified cause where it left none.

    A worker that was killed for hanging counts as killed, even if it still wrote that it was stopped.
    """
    status = run_dir.exit_status()
    if status is not None and status.attempt == attempt:
        said = classify(Death(0, status.reason)) if status.outcome != "completed" else None
        cause = said.cause if said is not None and said.cause != "unknown" else ""
        return Ending(status.outcome, status.reason, status.advice, status.rollback_to, cause=cause)
    disk_is_full = shutil.disk_usage(run_dir.path).free < FULL_BYTES
    crash = classify(
        Death(returncode, read_tail(run_dir), killed_because, killed_for, memory_kills, disk_is_full)
    )
    # On a disk without a free block a worker cannot even say that it pauses for want of space.
    outcome: Outcome = "paused" if crash.cause == "disk_full" else "failed"
    return Ending(outcome, crash.reason, crash.advice, clean=False, cause=crash.cause)


def read_tail(run_dir: RunDir) -> str:
    """The end of the newest attempt's output: what an earlier one died of is not this one's cause."""
    try:
        with run_dir.worker_log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            text = file.read().rpartition(ATTEMPT_MARK)[2]
            return text.partition(b"\n")[2].decode(errors="replace")
    except OSError:
        return ""
