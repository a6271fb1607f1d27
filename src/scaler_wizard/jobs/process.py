"""Starting a worker process, and saying in words why one died.

A worker is its own session (a terminal's Ctrl-C does not reach it), inherits the run directory's lock,
writes its output to worker.log, and is offline unless the job loads from the hub.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from scaler_wizard.store.lock import RunLock
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.training_mark import killed_for_memory, oom_kills, read_mark

LOG_TAIL_BYTES = 16_384
ATTEMPT_MARK = b"=== attempt "
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Ending:
    """How an attempt ended. `clean` is False where the worker left no exit status of its own."""

    status: str
    reason: str
    advice: str
    rollback_to: str | None = None
    clean: bool = True


def start_worker(
    run_dir: RunDir, run: str, attempt: int, socket: Path, *, offline: bool = True
) -> subprocess.Popen[bytes]:
    """Start one attempt. The lock passes to the worker, so it lasts as long as any of its processes.

    Raises:
        WorkspaceBusyError: an earlier worker of this run is still alive.
    """
    environment = {**os.environ, **ENVIRONMENT, "SCALER_JOB": run}
    if offline:
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [
        sys.executable, "-m", "scaler_wizard.recipes.worker", str(run_dir.path),
        "--run", run, "--attempt", str(attempt), "--socket", str(socket),
    ]  # fmt: skip
    with RunLock.acquire(run_dir.lock) as lock, run_dir.worker_log.open("ab") as log:
        (run_dir.path / "exit_status.json").unlink(missing_ok=True)
        log.write(ATTEMPT_MARK + str(attempt).encode() + b"\n")
        log.flush()
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            start_new_session=True, pass_fds=[lock.fileno()],
        )  # fmt: skip


def read_ending(run_dir: RunDir, attempt: int, returncode: int | None) -> Ending:
    """The attempt's own exit status, or the classified cause where it left none."""
    status = run_dir.exit_status()
    if status is not None and status.attempt == attempt:
        return Ending(status.outcome, status.reason, status.advice, status.rollback_to)
    mark = read_mark(run_dir)
    ours = mark if mark is not None and mark.attempt == attempt else None
    reason, advice = classify_death(
        returncode, _tail(run_dir.worker_log), oom_killed=killed_for_memory(ours, oom_kills())
    )
    return Ending("failed", reason, advice, clean=False)


def classify_death(returncode: int | None, log_tail: str, *, oom_killed: bool = False) -> tuple[str, str]:
    """(reason, advice) for a worker that died without a word of its own.

    Args:
        returncode: as `subprocess` gives it: -N for signal N; None when nobody waited for it.
        log_tail: the end of its output.
        oom_killed: the kernel has killed for memory while it trained (`store.training_mark`).
    """
    resume = "`scaler resume` continues at the last committed phase"
    text = log_tail.lower()
    if "out of memory" in text or "can't allocate memory" in text or "memoryerror" in text:
        return "the worker ran out of memory", f"set training.micro_batch_tokens lower; {resume}"
    if "no space left on device" in text:
        return "the disk is full", f"free some space; {resume}"
    if returncode is not None and returncode < 0:
        name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else str(-returncode)
        if name == "SIGKILL" and oom_killed:
            return (
                "the system killed the worker because memory ran out (SIGKILL)",
                "`scaler resume` continues at the last checkpoint, with forward passes half as large",
            )
        if name == "SIGKILL":
            return (
                "the worker was killed (SIGKILL): by a person, or by the system when memory ran out",
                f"if memory was short, set training.micro_batch_tokens lower; {resume}",
            )
        return f"the worker died of {name}", f"see worker.log; {resume}"
    last = next((line for line in reversed(log_tail.splitlines()) if line.strip()), "")
    found = f"the worker ended without an outcome (exit code {returncode})"
    return (f"{found}: {last.strip()[:300]}" if last else found), f"see worker.log; {resume}"


def _tail(path: Path) -> str:
    """The end of the newest attempt's output: what an earlier one died of is not this one's cause."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            text = file.read().rpartition(ATTEMPT_MARK)[2]
            return text.partition(b"\n")[2].decode(errors="replace")
    except OSError:
        return ""
