"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["cosine", "linear", "constant"]


def learning_rate_at(
    step: int, total_steps: int, peak: float, warmup_fraction: float = 0.05, shape: Shape = "cosine"
) -> float:
    """Learning rate of step `step` (from 0) of `total_steps`.

    Rises linearly over the first `warmup_fraction` of the steps, reaching the peak at the last of them, then
    falls to 0 after the last step along half a cosine (Loshchilov & Hutter 2017, eq. 5 with one period) or a
    line, or stays.
    """
    assert 0 <= step < total_steps, (step, total_steps)
    warmup = min(round(warmup_fraction * total_steps), total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if shape == "constant":
        return peak
    progress = (step - warmup) / (total_steps - warmup)
    return peak * (0.5 * (1 + math.cos(math.pi * progress)) if shape == "cosine" else 1 - progress)
