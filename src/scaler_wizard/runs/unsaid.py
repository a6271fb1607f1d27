"""Phases that were committed by an attempt which died before it could say so.

Between the commit of a checkpoint and the event that tells of it lie a few milliseconds. Who reads the
events, the report above all, would never learn of such a phase: it is not run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scaler_wizard.specs.events import Event, PhaseDone, PhaseStarted
from scaler_wizard.store.checkpoint_files import Checkpoint


def unsaid(events: Iterable[Event], chain: Sequence[Checkpoint]) -> list[tuple[PhaseDone, Checkpoint]]:
    """What is still to be said of a run's committed checkpoints, in their order."""
    said: set[str] = set()
    begun: dict[str, float] = {}
    for event in events:
        if isinstance(event, PhaseStarted):
            begun[event.phase] = event.time
        elif isinstance(event, PhaseDone):
            said.add(event.checkpoint)
    late = [item for item in chain if item.name not in said]
    return [(_done(item, begun.get(item.phase, item.created)), item) for item in late]


def _done(checkpoint: Checkpoint, begun: float) -> PhaseDone:
    return PhaseDone(
        phase=checkpoint.phase, checkpoint=checkpoint.name, metrics=dict(checkpoint.metrics),
        seconds=max(0.0, checkpoint.created - begun),
    )  # fmt: skip
