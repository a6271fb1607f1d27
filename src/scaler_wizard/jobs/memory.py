"""Binding a worker's memory: a cgroup (version 2) of its own where we may make one, else RLIMIT_DATA.

RLIMIT_AS would count address space that is only reserved, which torch does by the tens of GiB; RLIMIT_DATA
counts private writable memory. It binds each process alone, so the host watches their sum beside it
(`watchdog`).
"""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass
from pathlib import Path

from scaler_wizard.store.names import safe_name
from scaler_wizard.store.oom_kills import CGROUP, PROC, own_cgroup


@dataclass(frozen=True)
class MemoryBound:
    """What holds one worker to its limit: a cgroup's folder, or None where it is RLIMIT_DATA."""

    group: Path | None

    def release(self) -> None:
        """Remove the cgroup; its processes have ended."""
        if self.group is not None:
            with contextlib.suppress(OSError):  # a process of it is still dying: the next start reuses it
                self.group.rmdir()


def bind_memory(pid: int, name: str, limit: int, root: Path | None = None) -> MemoryBound:
    """Bind a process that has just started, and what it will start.

    Args:
        name: of the run, for the cgroup's folder.
        limit: bytes.
        root: the cgroup to make it in; this process's own by default.
    """
    root = delegated_cgroup() if root is None else root
    group = _make_group(root, name, limit) if root is not None else None
    if group is not None:
        try:
            (group / "cgroup.procs").write_text(str(pid))
            return MemoryBound(group)
        except OSError:
            MemoryBound(group).release()
    # It may have ended already, and that is for its exit status to say.
    with contextlib.suppress(OSError, ProcessLookupError, AttributeError, ValueError):
        # A lower limit that a person set in their shell stays.
        own = [
            value for value in resource.prlimit(pid, resource.RLIMIT_DATA) if value != resource.RLIM_INFINITY
        ]
        bound = min([limit, *own])
        resource.prlimit(pid, resource.RLIMIT_DATA, (bound, bound))
    return MemoryBound(None)


def delegated_cgroup(proc: Path = PROC, root: Path = CGROUP) -> Path | None:
    """This process's cgroup, where children of it can be given a memory limit; None where not."""
    folder = own_cgroup(root, proc)
    with contextlib.suppress(OSError):
        if folder and "memory" in (folder / "cgroup.subtree_control").read_text().split():
            return folder
    return None


def _make_group(root: Path, name: str, limit: int) -> Path | None:
    group = root / f"scaler-{safe_name(name, 'run')}"
    try:
        group.mkdir(exist_ok=True)
        (group / "memory.max").write_text(str(limit))
        with contextlib.suppress(OSError):
            (group / "memory.swap.max").write_text("0")
    except OSError:
        return None
    return group
