"""A router's confidence made honest: its temperature, and the confidence below which it abstains. Pure.

Logits and true labels of validation rows in, frozen results out. Knows no model and no engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

LOWEST_TEMPERATURE: Final = 0.05
HIGHEST_TEMPERATURE: Final = 20.0
SEARCH_STEPS: Final = 60
GOLDEN: Final = (math.sqrt(5) - 1) / 2


def softmax(logits: Sequence[float], temperature: float = 1.0) -> tuple[float, ...]:
    """Probabilities of one row."""
    top = max(logits)
    weights = [math.exp((value - top) / temperature) for value in logits]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def mean_nll(logits: Sequence[Sequence[float]], truths: Sequence[int], temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of the true labels, nats."""
    assert len(logits) == len(truths) > 0
    total = 0.0
    for row, truth in zip(logits, truths, strict=True):
        top = max(row)
        spread = math.log(math.fsum(math.exp((value - top) / temperature) for value in row))
        total += spread - (row[truth] - top) / temperature
    return total / len(truths)


def fit_temperature(logits: Sequence[Sequence[float]], truths: Sequence[int]) -> float:
    """The temperature of the lowest negative log-likelihood (Guo et al. 2017), by golden-section search.

    Within 0.05..20, on a logarithmic scale. Where every row is right the likelihood grows as the temperature
    falls and says nothing about confidence: then it stays at 1 at least.
    """
    low, high = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
    if all(row[truth] == max(row) for row, truth in zip(logits, truths, strict=True)):
        low = 0.0
    for _ in range(SEARCH_STEPS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if mean_nll(logits, truths, math.exp(left)) <= mean_nll(logits, truths, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """What answering only at this confidence or above does."""

    threshold: float
    coverage: float
    """Share of rows that are answered."""
    accuracy: float
    """Share of the answered rows that are right."""


@dataclass(frozen=True, slots=True)
class ThresholdChoice:
    """The confidence below which a router abstains, and why."""

    threshold: float
    target: float
    coverage: float
    accuracy: float
    reached: bool
    """Whether the answered rows reach the target."""
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def risk_coverage(confidence: Sequence[float], right: Sequence[bool]) -> tuple[RiskPoint, ...]:
    """The curve over all thresholds that make a difference, from answering everything to answering least."""
    assert len(confidence) == len(right) > 0
    ordered = sorted(zip(confidence, right, strict=True), reverse=True)
    points: list[RiskPoint] = []
    hits = 0
    for answered, (value, hit) in enumerate(ordered, start=1):
        hits += hit
        # Rows of equal confidence are answered together.
        if answered == len(ordered) or ordered[answered][0] < value:
            points.append(RiskPoint(value, answered / len(ordered), hits / answered))
    return tuple(reversed(points))


def choose_threshold(confidence: Sequence[float], right: Sequence[bool], target: float) -> ThresholdChoice:
    """The lowest threshold at which the answered rows are right in at least `target` of the cases.

    0 where all rows together reach it. Where no threshold does, the one of the highest accuracy, and of those
    the one that answers most.
    """
    assert 0 < target <= 1
    curve = risk_coverage(confidence, right)
    reaching = [point for point in curve if point.accuracy >= target]
    if not reaching:
        best = max(curve, key=lambda point: (point.accuracy, point.coverage))
        reason = f"no threshold reaches {target:.3f}; {best.accuracy:.3f} of {best.coverage:.0%} is the most"
        return ThresholdChoice(best.threshold, target, best.coverage, best.accuracy, False, reason)
    first = reaching[0]
    if first is curve[0]:
        reason = f"all {len(right):,} rows together are right in {first.accuracy:.3f}, {target:.3f} is asked"
        return ThresholdChoice(0.0, target, 1.0, first.accuracy, True, reason)
    # Between two confidences that occur, so that rounding in a later run does not move a row across.
    below = max(value for value in confidence if value < first.threshold)
    threshold = (below + first.threshold) / 2
    reason = f"{first.coverage:.1%} of the rows are answered, {first.accuracy:.3f} of them right"
    return ThresholdChoice(threshold, target, first.coverage, first.accuracy, True, reason)
