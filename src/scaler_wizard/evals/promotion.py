"""Whether a new version takes the place of the current one. Pure: answers before and after in, decision out.

A fall counts only where it is larger than the limit *and* the paired test says that it is no accident:
two equally good models of 90% that err independently on 120 questions differ by 4 points for no reason at all
(one standard deviation, sqrt(2 * 0.9 * 0.1 / 120)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scaler_wizard.evals.gap import Gap
from scaler_wizard.evals.statistics import McNemar, benjamini_hochberg, mcnemar, wilson_interval

SIGNIFICANT = 0.05
FEW_DISCORDANT = 25
"""Below so many changed answers the chi-squared p-value is too small; the exact one is taken."""


@dataclass(frozen=True, slots=True)
class Change:
    """The same questions answered before and after."""

    name: str
    """What they are, as a person reads it: "easy", "held-out rows of earlier files"."""
    before: tuple[bool, ...]
    after: tuple[bool, ...]

    def __post_init__(self) -> None:
        assert len(self.before) == len(self.after), "not the same questions"

    @property
    def n(self) -> int:
        """Questions."""
        return len(self.before)

    @property
    def fall(self) -> float:
        """Accuracy before minus accuracy after; negative where it rose."""
        return (sum(self.before) - sum(self.after)) / self.n if self.n else 0.0

    def test(self) -> McNemar:
        """McNemar's paired test."""
        pairs = list(zip(self.before, self.after, strict=True))
        return mcnemar(pairs.count((False, True)), pairs.count((True, False)))

    def p_value(self) -> float:
        """Two-sided; exact where few answers changed."""
        test = self.test()
        return test.p_exact if test.n01 + test.n10 < FEW_DISCORDANT else test.p_value

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: both accuracies with Wilson intervals, what was gained and lost, and the test."""
        test = self.test()
        return {
            "n": self.n,
            "before": _side(self.before),
            "after": _side(self.after),
            "gained": test.n01,
            "lost": test.n10,
            "p_value": self.p_value(),
        }


@dataclass(frozen=True, slots=True)
class Promotion:
    """The decision."""

    promote: bool
    reasons: tuple[str, ...]
    """Why it is held; why it may be promoted where it is."""
    warnings: tuple[str, ...]
    """What a person should look at, without holding anything back."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {**asdict(self), "reasons": list(self.reasons), "warnings": list(self.warnings)}


def decide_promotion(changes: Sequence[Change], *, most_fall: float, loss: float, gap: Gap) -> Promotion:
    """Promote unless something got worse by more than `most_fall` with confidence, or the loss is no number.

    The p-values are adjusted for how many sets of questions are looked at (Benjamini & Hochberg 1995).

    Args:
        most_fall: largest fall of an accuracy that is let pass, as a share.
        loss: training loss at the end, nats per token.
    """
    held: list[str] = []
    warnings: list[str] = []
    if not math.isfinite(loss):
        held.append(f"the training loss is {loss}")
    adjusted = benjamini_hochberg([change.p_value() for change in changes])
    for change, p_value in zip(changes, adjusted, strict=True):
        if change.fall <= 0:
            continue
        said = (
            f"{change.name}: accuracy fell from {_share(change.before)} to {_share(change.after)} "
            f"(n {change.n}, p {p_value:.2g})"
        )
        if change.fall > most_fall and p_value < SIGNIFICANT:
            held.append(f"{said}, more than {most_fall:.0%}")
        elif change.fall > most_fall or p_value < SIGNIFICANT:
            why = (
                "could be chance"
                if p_value >= SIGNIFICANT
                else f"within the {most_fall:.0%} that is let pass"
            )
            warnings.append(f"{said}, {why}")
    if gap.kind in ("watch", "overfit"):
        doubt = "" if gap.certain else ", which so few rows may show by chance"
        warnings.append(f"held-out loss is {gap.value:.2f} nats above training loss ({gap.kind}){doubt}")
    if held:
        return Promotion(False, tuple(held), tuple(warnings))
    asked = sum(change.n for change in changes)
    return Promotion(
        True, (f"no accuracy fell by more than {most_fall:.0%} with confidence (n {asked})",), tuple(warnings)
    )


def _side(answers: Sequence[bool]) -> dict[str, Any]:
    right, n = sum(answers), len(answers)
    return {"value": right / n if n else None, "n": n, "ci95": list(wilson_interval(right, n))}


def _share(answers: Sequence[bool]) -> str:
    return f"{sum(answers) / len(answers):.3f}"
