"""The last sign of progress of each living worker, in the host's memory.

A heartbeat is a measurement, not a decision: it is written to the database at most every few seconds, for
people who look. After a host's death the run's lock says whether a worker lives, and its clock starts anew.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from scaler_wizard.jobs.watchdog import Activity

WRITE_EVERY_SEC = 5.0


@dataclass(frozen=True)
class Sign:
    """What a worker last said."""

    token: int
    activity: Activity
    at: float
    """Seconds on the monotonic clock."""


class Heartbeats:
    """One `Sign` a run. Requests and the watchdog use it from two threads."""

    def __init__(self) -> None:
        self._signs: dict[str, Sign] = {}
        self._written: dict[str, float] = {}
        self._lock = threading.Lock()

    def note(self, run: str, token: int, now: float, activity: Activity | None = None) -> bool:
        """Progress of an attempt at `now`; True when it is time to write it down.

        Args:
            activity: what it does from now on; None leaves it. An older attempt's sign is ignored.
        """
        with self._lock:
            last = self._signs.get(run)
            if last is not None and token < last.token:
                return False
            kept = last.activity if last is not None and last.token == token else "load"
            self._signs[run] = Sign(token, activity or kept, now)
            if now - self._written.setdefault(run, now) < WRITE_EVERY_SEC:
                return False
            self._written[run] = now
            return True

    def of(self, run: str) -> Sign | None:
        """The newest sign of a run's worker."""
        with self._lock:
            return self._signs.get(run)

    def forget(self, run: str) -> None:
        """Its worker is gone."""
        with self._lock:
            self._signs.pop(run, None)
            self._written.pop(run, None)
