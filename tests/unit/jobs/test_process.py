"""Starting workers, and what is said about one that died."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from scaler_wizard.errors import WorkspaceBusyError
from scaler_wizard.jobs.crash import Death, classify
from scaler_wizard.jobs.process import ATTEMPT_MARK, read_ending, start_worker, thread_waiting
from scaler_wizard.store.lock import is_locked
from scaler_wizard.store.rundir import ExitStatus, RunDir


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "grow-0001", "grow")


@pytest.mark.parametrize(
    ("returncode", "log", "reason", "advice"),
    [
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried", "ran out of memory", "micro_batch_tokens"),
        (1, "RuntimeError: [enforce fail] can't allocate memory", "ran out of memory", "scaler resume"),
        (1, "MemoryError", "ran out of memory", "micro_batch_tokens"),
        (1, "OSError: [Errno 28] No space left on device", "disk is full", "free some space"),
        (-signal.SIGKILL, "", "SIGKILL", "if memory was short"),
        (-signal.SIGSEGV, "loading\n", "died of SIGSEGV", "worker.log"),
        (-64, "", "died of", "worker.log"),
        (1, "Traceback\n  ...\nKeyError: 'x'\n\n", "exit code 1): KeyError: 'x'", "worker.log"),
        (0, "", "without an outcome (exit code 0)", "scaler resume"),
        (None, "", "without an outcome (exit code None)", "scaler resume"),
    ],
)
def test_a_death_is_classified(returncode: int | None, log: str, reason: str, advice: str) -> None:
    found = classify(Death(returncode, log))
    assert reason in found.reason
    assert advice in found.advice


def test_the_workers_own_word_counts_before_any_guess(run_dir: RunDir) -> None:
    run_dir.worker_log.write_text("CUDA out of memory")
    run_dir.write_exit_status(ExitStatus(3, "paused", "lunch", "resume", rollback_to="P1"))
    ending = read_ending(run_dir, 3, -9)
    assert (ending.status, ending.reason, ending.rollback_to, ending.clean) == ("paused", "lunch", "P1", True)


def test_an_older_attempts_word_does_not_count(run_dir: RunDir) -> None:
    run_dir.write_exit_status(ExitStatus(2, "completed"))
    ending = read_ending(run_dir, 3, -9)
    assert (ending.status, ending.clean) == ("failed", False)
    assert "SIGKILL" in ending.reason


def test_an_older_attempts_output_is_not_this_ones_cause(run_dir: RunDir) -> None:
    run_dir.worker_log.write_bytes(
        ATTEMPT_MARK + b"1\nCUDA out of memory\n" + ATTEMPT_MARK + b"2\nKeyError: 'x'\n"
    )
    assert "KeyError" in read_ending(run_dir, 2, 1).reason


def test_a_huge_log_is_read_at_its_end(run_dir: RunDir) -> None:
    run_dir.worker_log.write_bytes(b"x" * 5_000_000 + b"\nValueError: the last line\n")
    assert "the last line" in read_ending(run_dir, 1, 1).reason


def script(tmp_path: Path, text: str) -> str:
    """A shell script in the interpreter's place; it gets the worker's arguments."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def test_a_worker_is_started_with_its_lock_log_and_environment(
    run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'echo "$@"; echo "offline=$HF_HUB_OFFLINE job=$SCALER_JOB"; echo told >&2; sleep 0.3; exit 7'
    monkeypatch.setattr(sys, "executable", script(tmp_path, text))
    run_dir.write_exit_status(ExitStatus(1, "paused"))
    worker = start_worker(run_dir, 2, tmp_path, tmp_path / "host.sock", tmp_path / "cpu.lock")
    assert run_dir.exit_status() is None, "an earlier attempt's status is gone"
    assert is_locked(run_dir.lock), "the worker holds the lock"
    with pytest.raises(WorkspaceBusyError, match="run directory"):
        start_worker(run_dir, 3, tmp_path, tmp_path / "host.sock", tmp_path / "cpu.lock")
    assert worker.wait(timeout=10) == 7
    assert not is_locked(run_dir.lock)
    log = run_dir.worker_log.read_text()
    assert f"{run_dir.path} --run grow-0001 --attempt 2 --socket {tmp_path / 'host.sock'}" in log
    assert "offline=1 job=grow-0001" in log
    assert "told" in read_ending(run_dir, 2, 7).reason


def test_the_lock_lasts_until_the_workers_last_child(
    run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", script(tmp_path, "sleep 0.6 & exit 0"))
    worker = start_worker(run_dir, 1, tmp_path, tmp_path / "host.sock", tmp_path / "cpu.lock")
    worker.wait(timeout=10)
    assert is_locked(run_dir.lock)


def test_a_busy_run_keeps_its_exit_status(
    run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", script(tmp_path, "sleep 0.5"))
    worker = start_worker(run_dir, 1, tmp_path, tmp_path / "host.sock", tmp_path / "cpu.lock")
    run_dir.write_exit_status(ExitStatus(1, "completed"))
    with pytest.raises(WorkspaceBusyError):
        start_worker(run_dir, 2, tmp_path, tmp_path / "host.sock", tmp_path / "cpu.lock")
    assert run_dir.exit_status() is not None
    worker.wait(timeout=10)


def test_threads_sleep_while_they_wait_where_others_use_the_cores() -> None:
    assert thread_waiting({}, load=0.3, cores=2) == {}
    assert thread_waiting({}, load=1.0, cores=2) == {"OMP_WAIT_POLICY": "passive"}
    assert thread_waiting({"GOMP_SPINCOUNT": "5"}, load=9.0, cores=2) == {}
