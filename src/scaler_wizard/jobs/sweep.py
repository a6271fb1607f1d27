"""The processes of a job, found in /proc by what they inherited; ending all of them, also those that escaped.

A worker and everything it starts carry SCALER_JOB and SCALER_WORKSPACE in their environment. A grandchild
that leaves the session (setsid) keeps them, and so does one that closed the lock's descriptor. A process is
signalled through a pidfd that was opened before its environment was read: a reused process id is never hit.
Where there is no /proc (macOS), nothing is found and the locks alone decide.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from scaler_wizard.store.workspace import ENVIRONMENT_VARIABLE

JOB_VARIABLE = "SCALER_JOB"
PROC = Path("/proc")
PAGE = os.sysconf("SC_PAGE_SIZE")
_STATE, _SESSION, _START = 0, 3, 19  # fields of /proc/PID/stat after the name in parentheses


@dataclass(frozen=True)
class Process:
    """One process of a job."""

    pid: int
    started: int
    """Clock ticks after boot: with `pid` it names one process for as long as the system runs."""
    session: int
    state: str
    """R running, S sleeping, D waiting for a device, T stopped, Z dead."""
    private_bytes: int
    """Memory that is its own: mapped weights and what it shares with its parent are not counted."""
    command: str


def environment_of(job: str, workspace: Path) -> dict[str, str]:
    """The variables that mark the processes of a job."""
    return {JOB_VARIABLE: job, ENVIRONMENT_VARIABLE: str(workspace)}


def find_processes(job: str, workspace: Path) -> tuple[Process, ...]:
    """Every living process of ours that belongs to the job, but for this one."""
    marks = {f"{name}={value}".encode() for name, value in environment_of(job, workspace).items()}
    found = (_look(int(entry.name), marks) for entry in _processes())
    return tuple(process for process in found if process is not None)


def kill_all(job: str, workspace: Path, timeout: float = 5.0) -> tuple[Process, ...]:
    """SIGKILL every process of the job until none is left; those that were found.

    Looks until nothing is there twice in a row: a process may fork between the look and the signal, and one
    that forks and ends while /proc is read is seen in neither of its two places.
    """
    killed: dict[tuple[int, int], Process] = {}
    deadline = time.monotonic() + timeout
    empty = 0
    while empty < 2 and time.monotonic() < deadline:
        left = find_processes(job, workspace)
        empty = 0 if left else empty + 1
        for process in left:
            killed.setdefault((process.pid, process.started), process)
            send(process, signal.SIGKILL)
        time.sleep(0.005)
    return tuple(killed.values())


def send(process: Process, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it is gone or another one has its id."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (OSError, AttributeError):
        return False
    try:
        if _started(process.pid) != process.started:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def is_alive(process: Process) -> bool:
    """Whether this very process still runs (a zombie does not)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = _fields(PROC / str(process.pid))
        return int(fields[_START]) == process.started and fields[_STATE] not in "ZX"
    return False


def _processes() -> list[Path]:
    own = str(os.getpid())
    try:
        return [entry for entry in PROC.iterdir() if entry.name.isdigit() and entry.name != own]
    except OSError:
        return []


def _look(pid: int, marks: set[bytes]) -> Process | None:
    folder = PROC / str(pid)
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The environment as it was at exec; only of processes of this user, others refuse it.
        if folder.stat().st_uid != os.getuid():
            return None
        if not marks <= set((folder / "environ").read_bytes().split(b"\0")):
            return None
        fields = _fields(folder)
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        resident, shared = (int(word) for word in (folder / "statm").read_text().split()[1:3])
        return Process(
            pid,
            int(fields[_START]),
            int(fields[_SESSION]),
            fields[_STATE],
            (resident - shared) * PAGE,
            command[:300],
        )
    return None  # it ended while it was looked at


def _started(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(_fields(PROC / str(pid))[_START])
    return None


def _fields(folder: Path) -> list[str]:
    # The name may hold spaces and parentheses: everything after the last one is numbers.
    return (folder / "stat").read_text().rpartition(")")[2].split()
