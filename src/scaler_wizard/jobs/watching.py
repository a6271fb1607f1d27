"""When to look at the inbox: told by the system where it tells of changes, and by the clock in any case."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import watchfiles

DEBOUNCE_MS = 1000
# The watcher wakes this often to see whether it is to end: two wake-ups a second cost 0.1% of a core.
STEP_MS = 500
log = logging.getLogger(__name__)


class Watcher:
    """Waits for the next time to look at a folder. Where the system tells nothing, `wait` times out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="inbox-watch", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Sleep until something changed, `wake` or `stop` was called (True), or `seconds` have passed."""
        happened = self._changed.wait(seconds)
        self._changed.clear()
        return happened

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def wake(self) -> None:
        """End a `wait` now."""
        self._changed.set()

    def stop(self) -> None:
        """End a `wait`, and listen no more."""
        self._stop.set()
        self._changed.set()

    def join(self, seconds: float) -> None:
        """Wait for the listening thread to end."""
        self._thread.join(seconds)

    def _watch(self) -> None:
        try:
            for _ in watchfiles.watch(
                self._folder, watch_filter=None, debounce=DEBOUNCE_MS, step=STEP_MS, stop_event=self._stop,
                raise_interrupt=False,
            ):  # fmt: skip
                self._changed.set()
        except (OSError, RuntimeError) as error:
            # No watches left, a network file system, a folder that was replaced: looked at by the clock.
            log.warning("changes in %s are not told (%s); it is looked at by the clock", self._folder, error)


def look_until_stopped(
    watcher: Watcher, look: Callable[[], float | None], poll_interval: Callable[[], float]
) -> None:
    """Call `look` whenever something may have changed. It returns seconds until it wants to look again."""
    while not watcher.stopped:
        try:
            soon = look()
        except Exception:
            # A defect or a failing disk in one look must not end the watch over the inbox.
            log.exception("looking at the inbox failed")
            soon = None
        watcher.wait(poll_interval() if soon is None else min(soon, poll_interval()))
