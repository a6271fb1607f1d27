"""From events to everything shown: the event file, and the cockpit payload derived from it.

The payload is a fold over the event stream (`CockpitState.apply`), pure and torch-free, so that the
worker, `scaler watch` and any later server derive the same picture from the same file.
"""

from __future__ import annotations

import logging
import time

from pydantic import ValidationError

from scaler_wizard.report.cockpit import CockpitState
from scaler_wizard.specs.events import Event, Progress
from scaler_wizard.store.events_file import EventWriter
from scaler_wizard.store.rundir import RunDir

PAYLOAD_SEC = 1.0
PROGRESS_SEC = 0.2

log = logging.getLogger(__name__)


class Telemetry:
    """The worker's one outlet for events."""

    def __init__(self, run_dir: RunDir, state: CockpitState) -> None:
        self.writer = EventWriter(run_dir.events)
        self.state = state
        self._run_dir = run_dir
        self._last_payload = 0.0
        self._last_progress = 0.0

    def emit(self, event: Event) -> None:
        """Append one event and refresh the payload when it is due."""
        written = self.writer.write(event)
        self.state.apply(written)
        now = time.monotonic()
        urgent = event.type not in ("progress", "step", "note", "probe")
        if urgent or now - self._last_payload > PAYLOAD_SEC:
            self._last_payload = now
            self._write_payload()

    def emit_progress(self, event: Progress) -> None:
        """Append a progress event, at most five a second (the last one of an activity always)."""
        now = time.monotonic()
        if event.done < event.total and now - self._last_progress < PROGRESS_SEC:
            return
        self._last_progress = now
        self.emit(event)

    def _write_payload(self) -> None:
        try:
            payload = self.state.payload()
        except ValidationError as error:
            # An invalid payload is our defect, not the person's: it must never cost them the run.
            log.error("cockpit payload dropped: %s", error)
            return
        self._run_dir.write_cockpit_payload(payload)

    def close(self) -> None:
        """Write the last payload and flush the events."""
        self._write_payload()
        self.writer.close()
