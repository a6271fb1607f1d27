"""The cognitive throttle: a person has two eyes and two ears, so one modality speaks at a time.

Voice (critical) goes before visual (warn), visual before telegram (info); a higher one pre-empts a
lower one. The canonical sentence is the subtitle at all times. The same state machine runs in the
cockpit; `tests/unit/safety/throttle_vectors.json` holds the cases both must agree on.

Rules:
- What is pre-empted waits and comes back, unless something newer of its kind has come meanwhile.
- Of visual and telegram items only the newest is kept: a screen shows the latest state.
- Voice items are spoken in order; at most three wait. A fourth drops the oldest waiting one (a spoken
  backlog is stale news); everything is in the event log anyway.
- The text that is on now, or that already waits, is not said twice.
- Without a voice, critical items are shown (visual), with the same priority.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from scaler_wizard.specs.cockpit import Modality, Severity

MODALITY: Mapping[Severity, Modality] = {"critical": "voice", "warn": "visual", "info": "telegram"}
PRIORITY: Mapping[Severity, int] = {"critical": 3, "warn": 2, "info": 1}
MAX_VOICE_QUEUE = 3


@dataclass(frozen=True)
class Item:
    """One thing to tell."""

    id: str
    severity: Severity
    text: str


@dataclass(frozen=True)
class Throttle:
    """What is told now and what waits. Every function returns a new one."""

    subtitle: str = ""
    """The canonical sentence."""
    current: Item | None = None
    voice: tuple[Item, ...] = ()
    """Critical items that wait, oldest first; at most `MAX_VOICE_QUEUE`."""
    visual: Item | None = None
    """The warning that waits."""
    telegram: Item | None = None
    """The information that waits."""
    has_voice: bool = True
    """Whether speech is available; `set_voice` changes it."""

    @property
    def modality(self) -> Modality | None:
        """How the current item is told, or None while it is quiet."""
        if self.current is None:
            return None
        modality = MODALITY[self.current.severity]
        return "visual" if modality == "voice" and not self.has_voice else modality


def offer(state: Throttle, item: Item) -> Throttle:
    """Take one more item: tell it now, let it wait, or leave it out as a repeat."""
    held = [waiting for waiting in (state.current, *state.voice, state.visual, state.telegram) if waiting]
    if any(
        item.id == other.id or (item.severity, item.text) == (other.severity, other.text) for other in held
    ):
        return state
    current = state.current
    if current is None:
        return replace(state, current=item)
    if PRIORITY[item.severity] > PRIORITY[current.severity]:
        return replace(_wait(state, current), current=item)
    if item.severity == current.severity and item.severity != "critical":
        return replace(state, current=item)
    return _wait(state, item)


def finish(state: Throttle, item_id: str) -> Throttle:
    """The item was spoken or seen; the next by priority takes its place. Another id is ignored."""
    if state.current is None or state.current.id != item_id:
        return state
    if state.voice:
        return replace(state, current=state.voice[0], voice=state.voice[1:])
    if state.visual is not None:
        return replace(state, current=state.visual, visual=None)
    return replace(state, current=state.telegram, telegram=None)


def set_sentence(state: Throttle, sentence: str) -> Throttle:
    """The run's canonical sentence changed; it is the subtitle whatever is told."""
    return replace(state, subtitle=sentence)


def set_voice(state: Throttle, available: bool) -> Throttle:
    """Speech became available or not; what is told goes on, in the modality that is left."""
    return replace(state, has_voice=available)


def _wait(state: Throttle, item: Item) -> Throttle:
    """Let `item` wait. A pre-empted one pushes out no newer: nothing of its kind waits while it is on."""
    if item.severity == "critical":
        return replace(state, voice=(*state.voice, item)[-MAX_VOICE_QUEUE:])
    if item.severity == "warn":
        return replace(state, visual=item)
    return replace(state, telegram=item)
