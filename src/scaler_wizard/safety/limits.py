"""The limits a contract promises: 90% of the available memory, 2x context per gate.

Computes; enforces nothing. The run engine samples its own memory and stops when `check_memory` says
"over", and passes `gpu_fraction` to torch. On a CPU the limit is on resident memory (RSS), watched by
the run, and not `RLIMIT_AS`: torch, CUDA and memory-mapped safetensors reserve address space many times
their resident size, so an address-space limit kills healthy runs and says nothing about real use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scaler_wizard.errors import LimitError

MEMORY_FRACTION = 0.9
WARN_FRACTION = 0.95
"""Share of the limit from which `check_memory` warns."""
MAX_CONTEXT_FACTOR = 2


@dataclass(frozen=True)
class MemoryLimit:
    """At most `fraction` of `total_bytes`."""

    total_bytes: int
    fraction: float = MEMORY_FRACTION

    def __post_init__(self) -> None:
        assert self.total_bytes >= 0
        assert 0 < self.fraction <= 1

    @property
    def limit_bytes(self) -> int:
        """Most bytes that may be in use."""
        return int(self.total_bytes * self.fraction)


@dataclass(frozen=True)
class MemoryReading:
    """Memory of this machine and of the control group this process lives in, in bytes."""

    total: int
    available: int
    """MemAvailable: what can be had without swapping."""
    rss: int = 0
    """Resident memory of this process, already part of what is not available."""
    cgroup_max: int | None = None
    """memory.max of the tightest enclosing control group (version 2); None when unlimited."""
    cgroup_used: int = 0
    """memory.current minus inactive page cache of that group: the kernel gives the cache back first."""


def check_memory(used: int, limit: MemoryLimit) -> Literal["ok", "warn", "over"]:
    """Where `used` bytes stand: "over" above the limit, "warn" from 95% of it."""
    if used > limit.limit_bytes:
        return "over"
    return "warn" if used >= WARN_FRACTION * limit.limit_bytes else "ok"


def check_context_step(from_tokens: int, to_tokens: int) -> None:
    """Refuse a context step of more than 2x.

    Raises:
        LimitError: names the longest length that may follow.
    """
    assert from_tokens > 0
    if to_tokens > MAX_CONTEXT_FACTOR * from_tokens:
        most = MAX_CONTEXT_FACTOR * from_tokens
        raise LimitError(
            f"the context would grow from {from_tokens:,} to {to_tokens:,} tokens "
            f"({to_tokens / from_tokens:.1f}x) in one step",
            f"at most {MAX_CONTEXT_FACTOR}x per gate",
            f"put {most:,} into scaling.context_schedule before {to_tokens:,}, or leave the schedule empty",
        )


def machine_bytes(reading: MemoryReading) -> int:
    """Memory this process could ever have: the machine's, or its control group's where that is less."""
    return reading.total if reading.cgroup_max is None else min(reading.total, reading.cgroup_max)


def cpu_memory_limit(reading: MemoryReading, fraction: float = MEMORY_FRACTION) -> MemoryLimit:
    """The limit on this process's RSS: `fraction` of what it has plus what it can still get."""
    obtainable = reading.available + reading.rss
    if reading.cgroup_max is not None:
        obtainable = min(obtainable, max(0, reading.cgroup_max - reading.cgroup_used) + reading.rss)
    return MemoryLimit(min(obtainable, machine_bytes(reading)), fraction)


def gpu_fraction(total_bytes: int, free_bytes: int, fraction: float = MEMORY_FRACTION) -> float:
    """Value for `torch.cuda.set_per_process_memory_fraction`, which counts in shares of all memory.

    Args:
        total_bytes: memory of the device.
        free_bytes: what was free before this process allocated anything.
    """
    assert total_bytes > 0
    return max(0.0, min(1.0, fraction * min(free_bytes, total_bytes) / total_bytes))


def read_cgroup(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> tuple[int | None, int]:
    """(memory.max, memory in use) of the tightest control group (version 2) around this process.

    A limit may stand on any ancestor, so all are read. (None, 0) where there is no limit, no version 2
    hierarchy, or nothing readable: then the machine's own numbers hold.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None, 0
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), None)
    if own is None or ".." in own.split("/"):
        return None, 0
    groups = [
        root,
        *(root.joinpath(*own.split("/")[: depth + 1]) for depth in range(own.count("/") + 1) if own),
    ]
    limits = [(maximum, group) for group in groups if (maximum := _number(group / "memory.max")) is not None]
    if not limits:
        return None, 0
    maximum, group = min(limits, key=lambda item: item[0])
    return maximum, max(0, (_number(group / "memory.current") or 0) - _inactive_file(group / "memory.stat"))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None


def _inactive_file(path: Path) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    words = [line.split() for line in lines]
    return next((int(w[1]) for w in words if len(w) == 2 and w[0] == "inactive_file" and w[1].isdigit()), 0)
