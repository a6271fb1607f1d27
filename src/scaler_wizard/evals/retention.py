"""contextRetention: how much of the retrieval within the base window is kept beyond it. Torch-free."""

from __future__ import annotations

from scaler_wizard.evals.results import NeedleResult, RetentionResult
from scaler_wizard.evals.statistics import ratio_interval


def context_retention(at_base: NeedleResult, at_length: NeedleResult) -> RetentionResult:
    """Accuracy of needles beyond the base window over the accuracy at the base window, cut to 0..1.

    at_base: the needle probe at the base length. at_length: at the longer one.

    `value` is None where it is not defined: no needle lies beyond the window, or the model finds none
    within it. baseline: the same ratio for prompts cut to the base window.
    """
    assert at_base.base_length == at_length.base_length
    within, beyond = at_base.pooled, at_length.beyond
    value = baseline = chance = interval = None
    if beyond.n and within.correct and at_base.informative:
        inside = within.correct / within.n
        value = min(1.0, beyond.correct / beyond.n / inside)
        baseline = min(1.0, (at_length.truncated_beyond.accuracy or 0.0) / inside)
        chance = min(1.0, (at_length.chance or 0.0) / inside)
        low, high = ratio_interval(beyond.correct, beyond.n, within.correct, within.n)
        interval = (min(1.0, low), min(1.0, high))
    return RetentionResult(
        value=value,
        n=beyond.n,
        ci95=interval,
        baseline=baseline,
        chance=chance,
        seed=at_length.seed,
        length=at_length.length,
        base_length=at_base.base_length,
    )
