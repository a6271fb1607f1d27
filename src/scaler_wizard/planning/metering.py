"""What a run has spent by its own events, attempts that were killed or paused included. Pure.

Time and tokens are read from the stream that every attempt appends to, so a kill loses what came after the
attempt's last event and nothing else, and no total ever falls. Time is that between one event of an attempt
and its next; waiting for a person at a gate is not work, and neither is the time between two attempts.
"""

from __future__ import annotations

from collections.abc import Iterable

from scaler_wizard.planning.spend import Metered, Spent
from scaler_wizard.specs.events import (
    Event,
    GateClosed,
    GateOpened,
    PhaseDone,
    PhaseStarted,
    Progress,
    RunEnded,
    RunStarted,
    StepDone,
)


def metered(events: Iterable[Event]) -> Metered:
    """Fold a run's events, in their order, into what it has spent."""
    meter = _Meter()
    for event in events:
        meter.add(event)
    return Metered(meter.total, meter.cut, meter.phases, meter.attempts)


class _Meter:
    def __init__(self) -> None:
        self.total = self.cut = Spent()
        self.phases: dict[str, Spent] = {}
        self.attempts = 0
        self._under_way: dict[str, Spent] = {}
        self._since_phase = Spent()
        """By the attempt under way, after its last finished phase."""
        self._phase = ""
        self._last = 0.0
        """Time of the attempt's last event."""
        self._waiting = False
        self._generated = self._scored = 0

    def add(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._begin_attempt(event.time)
        self._spend(event)
        match event:
            case PhaseStarted():
                self._phase, self._generated, self._scored = event.phase, 0, 0
            case PhaseDone():
                self.phases[event.phase] = self._under_way.pop(event.phase, Spent())
                self._phase, self._since_phase = "", Spent()
            case GateOpened():
                self._waiting = True
            case GateClosed():
                self._waiting = False
            case RunEnded(status="completed"):
                self._since_phase = Spent()

    def _begin_attempt(self, time: float) -> None:
        self.attempts += 1
        self.cut += self._since_phase
        self._since_phase, self._phase, self._waiting, self._last = Spent(), "", False, time
        self._generated = self._scored = 0

    def _spend(self, event: Event) -> None:
        # A clock that was set back takes nothing away.
        seconds = 0.0 if self._waiting else max(0.0, event.time - self._last)
        self._last = event.time
        generated = scored = 0
        if isinstance(event, Progress | PhaseDone):
            generated, scored = event.generated - self._generated, event.scored - self._scored
            self._generated, self._scored = event.generated, event.scored
        trained = event.tokens if isinstance(event, StepDone) else 0
        spent = Spent(seconds, max(0, generated), max(0, scored), trained)
        self.total += spent
        self._since_phase += spent
        if self._phase:
            self._under_way[self._phase] = self._under_way.get(self._phase, Spent()) + spent
