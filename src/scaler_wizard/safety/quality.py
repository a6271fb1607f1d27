"""One number for "is it still as good as before", and the direction it moves in.

Knows measured changes only. Does not know how they were measured.
"""

from __future__ import annotations

import math
from typing import Literal

Trend = Literal["improving", "steady", "worsening", "unknown"]

PERPLEXITY_SCALE = math.log(1.25)
"""A perplexity 25% lower (divided by 1.25) counts as tanh(1) = 0.76 of the possible gain."""
ACCURACY_SCALE = 0.2
"""Twenty points of accuracy count as tanh(1) = 0.76 of the possible gain."""
WORST_TASK_SCALE = 0.2
"""A worst task that lost twenty points or more halves the score."""


def emergent_vibe_score(
    relative_perplexity_change: float | None,
    accuracy_change: float | None = None,
    worst_task_drop: float = 0.0,
) -> float | None:
    """Quality against the baseline in 0..1; 0.5 is "as good as before", or None where nothing was measured.

    With r the relative change of perplexity, a the change of accuracy and w the largest drop of a task:

        g_ppl = tanh(-ln(1 + r) / ln 1.25)        g_acc = tanh(a / 0.2)
        score = (1 + mean of the measured g) / 2  *  (1 - min(1, max(0, w) / 0.2) / 2)

    The first factor weighs gains and losses equally; the second can only lower the score, so that a mean
    gain never hides one skill that broke: the best possible mean with a broken task is 0.5 again.

    Args:
        relative_perplexity_change: perplexity after / before - 1; above -1.
        accuracy_change: accuracy after - before, -1..1.
        worst_task_drop: accuracy before - after of the task that lost most, 0..1.
    """
    gains: list[float] = []
    if relative_perplexity_change is not None and not math.isnan(relative_perplexity_change):
        ratio = 1 + relative_perplexity_change
        gains.append(1.0 if ratio <= 0 else math.tanh(-math.log(ratio) / PERPLEXITY_SCALE))
    if accuracy_change is not None and not math.isnan(accuracy_change):
        gains.append(math.tanh(accuracy_change / ACCURACY_SCALE))
    if not gains:
        return None
    # A drop that is not a number is a task that could not be answered at all: the whole penalty.
    drop = 1.0 if math.isnan(worst_task_drop) else max(0.0, worst_task_drop)
    penalty = min(1.0, drop / WORST_TASK_SCALE) / 2
    return (1 + sum(gains) / len(gains)) / 2 * (1 - penalty)


def trend(slope: float | None, standard_error: float | None = None) -> Trend:
    """Direction of perplexity from its slope per step: only a slope beyond two standard errors has one."""
    if slope is None or not math.isfinite(slope):
        return "unknown"
    margin = 2 * standard_error if standard_error is not None and math.isfinite(standard_error) else 0.0
    if abs(slope) <= margin:
        return "steady"
    return "worsening" if slope > 0 else "improving"
