"""How many processes the kernel has killed for want of memory: the one place that reads its counts."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


def oom_kills(root: Path = CGROUP, proc: Path = PROC, *, group: Path | None = None) -> int | None:
    """Processes that the kernel has killed for want of memory; None where it is not to be read.

    The control group's own count first (version 2, memory.events), so that a neighbour's accident is not
    ours; the whole machine's since its boot where there is none.

    Args:
        root: where control groups are mounted.
        group: a group's folder, whose own count alone is meant (a worker's); this process's group otherwise.
    """
    if group is not None:
        return _count(group / "memory.events")
    own = own_cgroup(root, proc)
    found = _count(own / "memory.events") if own is not None else None
    return found if found is not None else _count(proc / "vmstat")


def own_cgroup(root: Path = CGROUP, proc: Path = PROC) -> Path | None:
    """The folder of this process's control group (version 2), or None where there is no such hierarchy."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), None)
    return None if own is None or ".." in own.split("/") else root / own


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    words = (line.split() for line in lines)
    return next((int(w[1]) for w in words if len(w) == 2 and w[0] == "oom_kill" and w[1].isdigit()), None)
