"""Telling a person who is not looking: through Apprise, in a thread of its own, never in the daemon's way.

The addresses hold passwords and tokens: they are in no log line, event, status or message of an error.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import queue
import threading
from typing import Any, Literal

from scaler_wizard.errors import MissingDependencyError, SpecError
from scaler_wizard.specs.continual import NotifySection

log = logging.getLogger(__name__)
Occasion = Literal["failed", "finished", "gate", "disk"]
# A daemon that fails every minute for a night must not fill the memory with what it wants to say.
MAX_WAITING = 100
_STOP = None


class Notifier:
    """Sends what the config wants told. Does nothing, and needs nothing, where it names no address."""

    def __init__(self, section: NotifySection) -> None:
        """Check the addresses.

        Raises:
            MissingDependencyError: addresses are configured and Apprise is not installed.
            SpecError: an address that Apprise cannot use; it is named by its place in the list.
        """
        self.section = section
        self.sent = 0
        self.failed = 0
        self._waiting: queue.Queue[tuple[str, str] | None] = queue.Queue(MAX_WAITING)
        self._targets = _targets(section.urls) if section.urls else []
        self._thread: threading.Thread | None = None

    def send(self, event: Occasion, title: str, text: str) -> bool:
        """Tell of something, soon; returns at once. False where nobody wants to know, or too much waits."""
        if not self._targets or event not in self.section.events:
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="scaler-notify", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((title[:200], text[:4000]))
        except queue.Full:
            log.warning("a notification was dropped: %d are waiting to be sent", MAX_WAITING)
            return False
        return True

    def close(self, seconds: float = 5.0) -> None:
        """Send what waits, for at most `seconds`."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._waiting.put(_STOP, timeout=seconds)
            self._thread.join(seconds)

    def _work(self) -> None:
        while (message := self._waiting.get()) is not _STOP:
            for place, target in enumerate(self._targets, 1):
                try:
                    arrived = bool(target.notify(title=message[0], body=message[1]))
                except Exception as error:  # noqa: BLE001
                    # A plugin may raise anything; the text may hold the address, so only its class is told.
                    log.debug("notify.urls[%d]: %s", place, type(error).__name__)
                    arrived = False
                if arrived:
                    self.sent += 1
                else:
                    self.failed += 1
                    log.warning("the notification to notify.urls[%d] could not be delivered", place)


def _targets(urls: list[str]) -> list[Any]:
    try:
        apprise = importlib.import_module("apprise")
    except ImportError:
        raise MissingDependencyError(
            f"notify.urls names {len(urls)} addresses, but Apprise is not installed",
            "the optional package apprise",
            "pip install 'scaler-wizard[notify]', or empty notify.urls",
        ) from None
    # Its own log lines carry whole addresses.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    targets = []
    for place, url in enumerate(urls, 1):
        target = apprise.Apprise.instantiate(url, suppress_exceptions=True)
        if target is None:
            raise SpecError(
                f"notify.urls[{place}] is no address that Apprise knows",
                "for example mailto://, ntfy:// or json://",
                "see https://appriseit.com for the form of each service",
            )
        targets.append(target)
    return targets
