"""Whether a worker still gets on: limits without progress by what it is doing, and a limit on its memory.

Pure. A sign of progress is a finished step, a finished part of an evaluation or a change of activity, not
"the process exists". A worker at an open gate polls, and may do so for as long as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Activity = Literal["load", "step", "save", "gate", "stop"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)
GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """Seconds without a sign of progress; see `specs.continual.WatchdogSection`."""

    load: float = 600.0
    step: float = 300.0
    save: float = 600.0
    stop: float = 120.0

    def of(self, activity: Activity) -> float:
        """The limit of an activity. At a gate the sign is a poll, five a second, so `step` is ample."""
        return self.step if activity == "gate" else float(getattr(self, activity))


@dataclass(frozen=True)
class Kill:
    """End a worker by force."""

    run: str
    cause: Literal["hung", "memory"]
    why: str


def look_at(
    run: str, activity: Activity, silent_sec: float, limits: Limits, resident_bytes: int = 0,
    memory_limit: int | None = None,
) -> Kill | None:  # fmt: skip
    """A reason to kill the worker, or None.

    Args:
        silent_sec: seconds of the monotonic clock since its last sign of progress.
        resident_bytes: memory that its processes hold.
        memory_limit: bytes they may hold, or None.
    """
    limit = limits.of(activity)
    if silent_sec > limit:
        return Kill(
            run, "hung", f"no progress for {silent_sec:.0f} s in activity {activity} (limit {limit:g} s)"
        )
    if memory_limit is not None and resident_bytes > memory_limit:
        found = f"{resident_bytes / GIB:.2f} GiB in memory (limit {memory_limit / GIB:.2f} GiB)"
        return Kill(run, "memory", f"its processes hold {found}")
    return None
