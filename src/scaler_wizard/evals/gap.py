"""The gap between held-out and training loss, in words. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scaler_wizard.evals.statistics import Interval, mean_estimate, normal_quantile

GapClass = Literal["good", "watch", "overfit", "not measured"]

WATCH, OVERFIT = 0.3, 0.5


@dataclass(frozen=True, slots=True)
class Gap:
    """Held-out minus training loss of one file's rows under the same weights, nats per trained token."""

    train_loss: float | None
    held_out_loss: float | None
    value: float | None
    ci95: Interval | None
    """Two independent samples, normal approximation; None below two rows a side."""
    kind: GapClass

    @property
    def certain(self) -> bool:
        """Whether the whole interval lies where a gap is to be watched: few rows differ by themselves."""
        return self.ci95 is not None and self.ci95[0] >= WATCH


def gap_of(train_losses: Sequence[float], held_out_losses: Sequence[float]) -> Gap:
    """Below 0.3 is good, up to 0.5 is to be watched, above is overfit.

    Args:
        train_losses, held_out_losses: mean loss of each row. With none on a side nothing can be said; a gap
            that is not a number counts as overfit.
    """
    train, held_out = mean_estimate(train_losses), mean_estimate(held_out_losses)
    if not train.n or not held_out.n:
        losses = [side.mean if side.n else None for side in (train, held_out)]
        return Gap(losses[0], losses[1], None, None, "not measured")
    value = held_out.mean - train.mean
    half = normal_quantile(0.95) * math.hypot(train.standard_error, held_out.standard_error)
    interval = (value - half, value + half) if math.isfinite(half) else None
    return Gap(train.mean, held_out.mean, value, interval, classify(value))


def classify(gap: float) -> GapClass:
    """The class of a gap in nats."""
    return "good" if gap < WATCH else "watch" if gap <= OVERFIT else "overfit"
