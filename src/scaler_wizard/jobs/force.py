"""Ending a worker by force, with evidence: stacks first, then SIGTERM, then SIGKILL for every process of it.

Done in turns (`step`), so that the host answers requests meanwhile. What was found is kept in the run
directory under evidence/.
"""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from scaler_wizard.errors import ScalerError
from scaler_wizard.jobs.sweep import Process, find_processes, kill_all, send
from scaler_wizard.jobs.watchdog import Kill
from scaler_wizard.store.durable import write_atomic
from scaler_wizard.store.rundir import RunDir

STACKS_SEC = 1.0
TERM_SEC = 1.0
MAX_EVIDENCE = 256 << 10


class ForcedEnd:
    """One worker that is being ended."""

    def __init__(self, run_dir: RunDir, workspace: Path, token: int, kill: Kill, now: float) -> None:
        self.kill = kill
        self.evidence = run_dir.path / "evidence" / f"attempt-{token}.txt"
        self._run_dir = run_dir
        self._workspace = workspace
        self._log_size = _size(run_dir.worker_log)
        self._stage = "stacks"
        self._until = now + STACKS_SEC
        self._seen = find_processes(run_dir.id, workspace)
        for process in self._seen:
            # The worker itself dumps its stacks on this signal; any other process would die of it.
            if process.pid == process.session and kill.cause == "hung":
                send(process, signal.SIGUSR1)

    def step(self, now: float) -> None:
        """Go on where it is time; the last turns repeat SIGKILL until nothing is left."""
        if now < self._until:
            return
        if self._stage == "stacks":
            self._keep_evidence()
            for process in find_processes(self._run_dir.id, self._workspace):
                send(process, signal.SIGTERM)
            self._stage, self._until = "kill", now + TERM_SEC
        else:
            kill_all(self._run_dir.id, self._workspace, timeout=0.2)

    def _keep_evidence(self) -> None:
        processes = find_processes(self._run_dir.id, self._workspace) or self._seen
        text = "\n".join(
            [
                f"{self._run_dir.id}: {self.kill.why}", "", "processes:",
                *(_described(process) for process in processes), "", "stacks (most recent call first):",
                self._stacks() or "none: the worker did not answer SIGUSR1 (stopped, or not yet started up)",
            ]
        )  # fmt: skip
        # Evidence is worth having, but a full disk must not keep a hung worker alive.
        with contextlib.suppress(OSError, ScalerError):
            self.evidence.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(self.evidence, text + "\n", fs=self._run_dir.fs)

    def _stacks(self) -> str:
        with contextlib.suppress(OSError), self._run_dir.worker_log.open("rb") as file:
            file.seek(self._log_size)
            return file.read(MAX_EVIDENCE).decode(errors="replace").strip()
        return ""


def _described(process: Process) -> str:
    waits = ""
    with contextlib.suppress(OSError):
        waits = (Path("/proc") / str(process.pid) / "wchan").read_text().strip("0\n")
    where = f", waits in {waits}" if waits else ""
    memory = f"{process.private_bytes / 2**20:.0f} MiB of its own"
    return f"  {process.pid} state {process.state}{where}, {memory}: {process.command}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
