"""How well a router routes, in numbers: accuracy, confusion, calibration, what abstaining would save. Pure.

Probabilities and true labels in, frozen results out. Knows no model and no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scaler_wizard.evals.statistics import Interval, mean_estimate, wilson_interval

CALIBRATION_BINS = 15
THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Share:
    """Right answers out of n, with Wilson's 95% interval."""

    right: int
    n: int

    @property
    def value(self) -> float:
        """Their share; 0 where nothing was asked."""
        return self.right / self.n if self.n else 0.0

    @property
    def interval(self) -> Interval:
        """Wilson (1927)."""
        return wilson_interval(self.right, self.n)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready {value, right, n, ci95}."""
        return {"value": self.value, "right": self.right, "n": self.n, "ci95": list(self.interval)}


@dataclass(frozen=True, slots=True)
class AbstentionPoint:
    """What a threshold does: rows below it are not routed."""

    threshold: float
    answered: Share
    """Accuracy on the rows that are routed."""
    coverage: float
    """Share of rows that are routed."""


@dataclass(frozen=True, slots=True)
class RoutingScore:
    """One router on one set of held-out rows."""

    labels: tuple[str, ...]
    accuracy: Share
    by_label: tuple[Share, ...]
    """Of each label's own rows: its recall."""
    confusion: tuple[tuple[int, ...], ...]
    """[true label][chosen label], rows."""
    calibration_error: float
    """Expected calibration error, 15 bins of equal width (Naeini et al. 2015)."""
    abstention: tuple[AbstentionPoint, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "labels": list(self.labels), "accuracy": self.accuracy.as_dict(),
            "by_label": {
                label: share.as_dict() for label, share in zip(self.labels, self.by_label, strict=True)
            },
            "confusion": [list(row) for row in self.confusion], "calibration_error": self.calibration_error,
            "abstention": [
                {**asdict(point), "answered": point.answered.as_dict()} for point in self.abstention
            ],
        }  # fmt: skip


def score_routing(
    labels: Sequence[str], truths: Sequence[str], probabilities: Sequence[Sequence[float]]
) -> RoutingScore:
    """Score a router's probabilities [rows][labels] against the true labels [rows]."""
    assert len(truths) == len(probabilities) > 0
    place = {label: index for index, label in enumerate(labels)}
    true = [place[label] for label in truths]
    chosen = [max(range(len(labels)), key=row.__getitem__) for row in probabilities]
    confidence = [max(row) for row in probabilities]
    right = [one == other for one, other in zip(true, chosen, strict=True)]
    confusion = [[0] * len(labels) for _ in labels]
    for one, other in zip(true, chosen, strict=True):
        confusion[one][other] += 1
    return RoutingScore(
        tuple(labels),
        Share(sum(right), len(right)),
        tuple(Share(row[index], sum(row)) for index, row in enumerate(confusion)),
        tuple(tuple(row) for row in confusion),
        calibration_error(confidence, right),
        tuple(_abstaining(threshold, confidence, right) for threshold in THRESHOLDS),
    )


def calibration_error(
    confidence: Sequence[float], right: Sequence[bool], bins: int = CALIBRATION_BINS
) -> float:
    """Mean distance of confidence and accuracy over bins of equal width, weighted by their rows."""
    sums: dict[int, list[float]] = {}
    for value, hit in zip(confidence, right, strict=True):
        entry = sums.setdefault(min(int(value * bins), bins - 1), [0.0, 0.0])
        entry[0] += value
        entry[1] += hit
    return sum(abs(said - hits) for said, hits in sums.values()) / len(confidence)


def _abstaining(threshold: float, confidence: Sequence[float], right: Sequence[bool]) -> AbstentionPoint:
    kept = [hit for value, hit in zip(confidence, right, strict=True) if value >= threshold]
    return AbstentionPoint(threshold, Share(sum(kept), len(kept)), len(kept) / len(right))


def over_seeds(accuracies: Sequence[float]) -> dict[str, Any]:
    """Mean, interval and range of the accuracies of a router that was trained with several seeds."""
    estimate = mean_estimate(list(accuracies))
    return {
        **estimate.as_dict(),
        "values": list(accuracies),
        "lowest": min(accuracies),
        "highest": max(accuracies),
    }
