"""What a stage of the bootstrap is: the protocol that all six follow, and how hard an attempt tries.

Each attempt is a phase of the run (P2, then P2.2 and P2.3 where the gate failed) that starts from the model
of the stage before, so that a failed one is undone by going on without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics

if TYPE_CHECKING:
    from scaler_wizard.recipes.bootstrap_lab import Lab

MOST_ATTEMPTS = 3
"""More data where it is weak, then more replay, then the end with the evidence."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What this attempt does more than the one before."""

    attempt: int
    """1 for the first."""
    weak: tuple[str, ...] = ()
    """Instruction types that get more data, in the order of the attempts before; none at first."""
    replay: float = 0.0
    """Share of the training tokens that is replayed."""


class Stage(Protocol):
    """One stage.

    `run` makes data with the model before it, trains, measures and decides. Its metrics have at least

    stage     its number
    passed    whether the gate is met: the next stage builds on this model
    next      what `evals.stage_gate.next_step` says: advance, more_data, more_replay or stop
    reasons   of the decision, sentences
    steps     optimiser steps
    answers   skill -> right or wrong, for the same questions in the same order (`Lab.measure`)
    accuracy  share of right answers of this stage's own skill
    """

    @property
    def number(self) -> int:
        """1 to 6."""

    @property
    def title(self) -> str:
        """What it teaches, for people."""

    def run(self, lab: Lab, context: PhaseContext, effort: Effort) -> Metrics:
        """One attempt. The session holds the model of the stage before, afterwards the trained one."""


def phase_name(number: int, attempt: int) -> str:
    """P2, P2.2, P2.3: an attempt's phase and checkpoint."""
    return f"P{number}" if attempt == 1 else f"P{number}.{attempt}"
