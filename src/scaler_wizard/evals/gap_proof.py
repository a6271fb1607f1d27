"""Is there anything to learn? The gap between a base model and a goal, proven before training. Pure.

A base model asked badly looks as if it could not do what it can. So it is asked in several ways, and the best
of them is the baseline: an instruction as it stands, in a template, after worked examples, and in whatever
words bring most out of it. Taking the best of several overstates the baseline a little, which errs on the
side of not training. What training then gains is called by its name: *elicitation* where the base could do
the task all along in a form it knows, *capability* where it could not in any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scaler_wizard.evals.promotion import SIGNIFICANT, Change
from scaler_wizard.evals.statistics import Interval, benjamini_hochberg, cohens_h, wilson_interval

GainLabel = Literal["capability", "elicitation", "none", "loss"]

ASKED_IN = ("raw", "templated", "few_shot", "elicited")
"""The ways a base model has to be asked before its gap counts as proven."""


@dataclass(frozen=True, slots=True)
class GapProof:
    """What a base model can do of one kind of task, whichever way it is asked."""

    name: str
    right: Mapping[str, int]
    """Right answers by the way of asking."""
    n: int
    """Questions; the same ones in every way."""
    target: float
    open: bool
    reason: str

    @property
    def best(self) -> str:
        """The way of asking that brings most; the first of equals."""
        return max(self.right, key=lambda way: self.right[way])

    @property
    def baseline(self) -> float:
        """Accuracy of the best way."""
        return self.right[self.best] / self.n if self.n else 0.0

    @property
    def ci95(self) -> Interval:
        """Wilson's interval of the baseline."""
        return wilson_interval(self.right[self.best], self.n)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "name": self.name, "right": dict(self.right), "n": self.n, "target": self.target,
            "best": self.best, "baseline": self.baseline, "ci95": list(self.ci95), "open": self.open,
            "reason": self.reason,
        }  # fmt: skip


def prove_gap(
    name: str, answers: Mapping[str, Sequence[bool]], target: float, *, least_n: int = 100
) -> GapProof:
    """Open when the whole interval of the best way of asking lies below the target.

    Args:
        answers: right or wrong by the way of asking, at least those of `ASKED_IN`, over the same questions.
        target: accuracy that training is meant to reach.
        least_n: fewer questions prove nothing.

    Raises:
        ValueError: a way of asking is missing, or they differ in their number of questions.
    """
    if missing := [way for way in ASKED_IN if way not in answers]:
        raise ValueError(f"{name} was not asked {', '.join(missing)}")
    if len(sizes := {len(row) for row in answers.values()}) != 1:
        raise ValueError(f"{name}: {sorted(sizes)} questions in different ways, expected the same ones")
    n = sizes.pop()
    right = {way: sum(row) for way, row in answers.items()}
    best = max(right, key=lambda way: right[way])
    low, high = wilson_interval(right[best], n)
    found = f"{name}: asked {best.replace('_', '-')} the base is right {right[best]} of {n} times"
    if n < least_n:
        return GapProof(name, right, n, target, False, f"{found}, too few to prove a gap ({least_n} needed)")
    is_open = high < target
    against = "below" if is_open else "not below"
    reason = f"{found} ({low:.3f} to {high:.3f}), {against} the target of {target:.2f}"
    return GapProof(name, right, n, target, is_open, reason)


@dataclass(frozen=True, slots=True)
class GapDecision:
    """Whether to train at all."""

    train: bool
    reasons: tuple[str, ...]
    open: tuple[str, ...]
    """Kinds of task with a proven gap."""
    closed: tuple[str, ...]
    """Kinds that the base can do already, or that were asked too little."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "train": self.train, "reasons": list(self.reasons), "open": list(self.open),
            "closed": list(self.closed),
        }  # fmt: skip


def decide_gap(proofs: Sequence[GapProof]) -> GapDecision:
    """Refuse to train when nothing is proven to be missing."""
    is_open = tuple(proof.name for proof in proofs if proof.open)
    closed = tuple(proof.name for proof in proofs if not proof.open)
    reasons = tuple(proof.reason for proof in proofs if proof.open == bool(is_open))
    return GapDecision(bool(is_open), reasons or ("nothing was asked",), is_open, closed)


@dataclass(frozen=True, slots=True)
class Gain:
    """What training changed in one kind of task, and what to call it."""

    name: str
    label: GainLabel
    change: Change
    """Against the best way of asking the base."""
    p_adjusted: float
    """McNemar, adjusted over the kinds (Benjamini & Hochberg 1995)."""
    h: float
    """Cohen's effect size."""
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields: `Change.as_dict` and what is derived from it."""
        return {
            "name": self.name, "label": self.label, **self.change.as_dict(), "p_adjusted": self.p_adjusted,
            "h": self.h, "sentence": self.sentence,
        }  # fmt: skip


def label_gains(
    baselines: Mapping[str, Sequence[bool]],
    after: Mapping[str, Sequence[bool]],
    known_form: Mapping[str, Sequence[bool]] | None = None,
) -> tuple[Gain, ...]:
    """Name each kind's gain over the best way of asking the base, question by question.

    Args:
        baselines: answers of the best way of asking, by kind.
        after: answers of the trained model to the same questions.
        known_form: the base's answers with each task put into a form it was pretrained on, which a person who
            asks would have to know. Matching that is elicitation; only beating it is capability. Without it
            the baseline stands in.
    """
    known = known_form or {}
    changes = [Change(name, tuple(before), tuple(after[name])) for name, before in baselines.items()]
    ceilings = [Change(c.name, tuple(known.get(c.name, c.before)), c.after) for c in changes]
    adjusted = benjamini_hochberg([change.p_value() for change in changes])
    above = benjamini_hochberg([change.p_value() for change in ceilings])
    return tuple(
        _gain(change, ceiling, p, p_above)
        for change, ceiling, p, p_above in zip(changes, ceilings, adjusted, above, strict=True)
    )


def _gain(change: Change, ceiling: Change, p: float, p_above: float) -> Gain:
    before, after = (sum(side) / change.n if change.n else 0.0 for side in (change.before, change.after))
    label: GainLabel = "none"
    if p < SIGNIFICANT and change.fall != 0:
        beats_known = ceiling.fall < 0 and p_above < SIGNIFICANT
        label = "loss" if change.fall > 0 else "capability" if beats_known else "elicitation"
    sentence = f"{change.name}: {before:.3f} to {after:.3f} (n {change.n}, p {p:.2g}): {_WORDS[label]}"
    return Gain(change.name, label, change, p, cohens_h(before, after), sentence)


_WORDS: dict[GainLabel, str] = {
    "capability": "a capability, better than the base in any form",
    "elicitation": "elicitation of what the base could do in a form it knows",
    "none": "no gain that is more than chance",
    "loss": "worse than the base",
}
