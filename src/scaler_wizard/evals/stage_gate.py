"""Whether a stage of training may be built upon. Pure: answers in, decision out.

The share that a stage must reach is compared with the *lower* end of its Wilson interval: at 100 questions a
model that is right 93% of the time reaches a plain 95% in 29% of all trials. What earlier stages learned is
compared question by question with their own answers when they passed, every stage with every earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scaler_wizard.evals.promotion import SIGNIFICANT, Change
from scaler_wizard.evals.statistics import (
    Interval,
    benjamini_hochberg,
    cohens_h,
    wilson_interval,
    wilson_lower_bound,
)
from scaler_wizard.safety.checks import Check, verdict_of

LEAST_N = 500
MOST_FALL = 0.02
"""An earlier stage may lose so much (a share) even where the paired test is sure that it lost something."""

NextStep = Literal["advance", "more_data", "more_replay", "stop"]


def required_successes(n: int, share: float) -> int | None:
    """The fewest right answers of n with Wilson's lower bound at `share` or above; None where n is too few.

    293 of 300, 485 of 500 and 964 of 1,000 for 0.95.
    """
    return next((k for k in range(round(n * share), n + 1) if wilson_lower_bound(k, n) >= share), None)


@dataclass(frozen=True, slots=True)
class TypeScore:
    """One instruction type in this stage against the same questions before it."""

    name: str
    change: Change
    p_adjusted: float
    """McNemar, adjusted over the instruction types (Benjamini & Hochberg 1995)."""
    h: float
    """Cohen's effect size."""

    @property
    def accuracy(self) -> float:
        """Share of right answers after the stage."""
        return sum(self.change.after) / self.change.n if self.change.n else 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {"name": self.name, **self.change.as_dict(), "p_adjusted": self.p_adjusted, "h": self.h}


@dataclass(frozen=True, slots=True)
class Kept:
    """What an earlier stage learned: its own answers when it passed, and now, to the same questions."""

    stage: str
    change: Change
    share: float | None = None
    """Share of right answers that it must still have: what its own gate asked for; None where only the paired
    test counts. Not the lower bound: a stage that has just met its gate (581 of 600 for 0.95) would be undone
    by one answer more or less."""


@dataclass(frozen=True, slots=True)
class StageDecision:
    """The decision, its reasons in words, and what they were computed from."""

    stage: str
    passed: bool
    reasons: tuple[str, ...]
    checks: Mapping[str, Check]
    correct: int
    n: int
    share: float
    """What the lower bound had to reach."""
    types: tuple[TypeScore, ...]
    kept: tuple[dict[str, Any], ...]
    """One JSON-ready row for each earlier stage."""
    weak: tuple[str, ...]
    """Types below the share: where more data is made. Empty where only earlier stages fell."""
    forgotten: tuple[str, ...]
    """Earlier stages that fell: what more replay is for."""

    @property
    def ci95(self) -> Interval:
        """Wilson's interval of the stage's accuracy."""
        return wilson_interval(self.correct, self.n)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "stage": self.stage, "passed": self.passed, "reasons": list(self.reasons),
            "checks": verdict_of(self.checks).as_dict()["checks"], "correct": self.correct, "n": self.n,
            "accuracy": self.correct / self.n if self.n else None, "ci95": list(self.ci95),
            "share": self.share, "required": required_successes(self.n, self.share),
            "types": [score.as_dict() for score in self.types], "kept": list(self.kept),
            "weak": list(self.weak), "forgotten": list(self.forgotten),
        }  # fmt: skip


def decide_stage(
    stage: str,
    types: Sequence[Change],
    kept: Sequence[Kept],
    *,
    share: float,
    least_n: int = LEAST_N,
    most_fall: float = MOST_FALL,
) -> StageDecision:
    """Pass when the stage reaches its share for certain, gained, and no earlier stage was forgotten.

    Args:
        types: by instruction type, the same questions before this stage and after it.
        kept: every earlier stage.
        share: what the lower end of the pooled 95% interval must reach.
        least_n: fewer questions are not enough to decide on. A demonstration may ask for less, and its
            record then says so.
    """
    scores = _scores(types)
    pooled = Change(
        stage,
        tuple(answer for change in types for answer in change.before),
        tuple(answer for change in types for answer in change.after),
    )
    own = _own_checks(pooled, scores, share, least_n, most_fall)
    kept_checks, rows = _kept_checks(kept, most_fall)
    verdict = verdict_of(own | kept_checks)
    below = [score.name for score in scores if score.accuracy < share]
    # Where every type is above the share by itself and only the bound is not reached, all are made more of.
    weak = tuple(below or (score.name for score in scores))
    return StageDecision(
        stage, verdict.passed, verdict.reasons, verdict.checks, sum(pooled.after), pooled.n, share, scores,
        rows, weak=() if all(check.ok for check in own.values()) else weak,
        forgotten=tuple(row["stage"] for row in rows if not row["ok"]),
    )  # fmt: skip


def _own_checks(
    pooled: Change, scores: Sequence[TypeScore], share: float, least_n: int, most_fall: float
) -> dict[str, Check]:
    """What the stage's own questions say: enough of them, the share reached, a gain, no type fallen."""
    correct, n = sum(pooled.after), pooled.n
    low, need = wilson_lower_bound(correct, n), required_successes(n, share)
    checks = {
        "n": Check(n, least_n, n >= least_n, f"{n} questions (at least {least_n})"),
        "share": Check(
            low, share, low >= share,
            f"{correct} of {n} right, lower bound {low:.3f}, {'reaches' if low >= share else 'below'} "
            f"{share:.2f} ({'no number of right answers' if need is None else need} of {n} would)",
        ),
        "gain": _gain_check(pooled),
    }  # fmt: skip
    for score in scores:
        change = score.change
        if change.fall > most_fall and score.p_adjusted < SIGNIFICANT:
            fell = f"{score.name} fell from {sum(change.before)} to {sum(change.after)} of {change.n}"
            sentence = f"{fell} (p {score.p_adjusted:.2g})"
            checks[f"type {score.name}"] = Check(-change.fall, -most_fall, False, sentence)
    return checks


def _scores(types: Sequence[Change]) -> tuple[TypeScore, ...]:
    adjusted = benjamini_hochberg([change.p_value() for change in types])
    return tuple(
        TypeScore(change.name, change, p, cohens_h(*(_share(side) for side in (change.before, change.after))))
        for change, p in zip(types, adjusted, strict=True)
    )


def _gain_check(pooled: Change) -> Check:
    p = pooled.p_value()
    ok = pooled.fall < 0 and p < SIGNIFICANT
    sentence = (
        f"{_share(pooled.before):.3f} before and {_share(pooled.after):.3f} after on the same questions "
        f"(p {p:.2g}): {'a gain' if ok else 'no gain that is more than chance'}"
    )
    return Check(-pooled.fall, 0.0, ok, sentence)


def _kept_checks(
    kept: Sequence[Kept], most_fall: float
) -> tuple[dict[str, Check], tuple[dict[str, Any], ...]]:
    """A check and a row for each earlier stage; p-values adjusted over all of them."""
    adjusted = benjamini_hochberg([item.change.p_value() for item in kept])
    checks: dict[str, Check] = {}
    rows = []
    for item, p in zip(kept, adjusted, strict=True):
        after, n = sum(item.change.after), item.change.n
        fell = item.change.fall > most_fall and p < SIGNIFICANT
        short = item.share is not None and after < item.share * n
        words = f"{item.stage}: {sum(item.change.before)} of {n} when it passed, {after} now (p {p:.2g})"
        if short:
            words += f", fewer than the {item.share:.0%} that its own gate asked for"
        ok = n > 0 and not fell and not short
        checks[f"kept {item.stage}"] = Check(-item.change.fall, -most_fall, ok, words)
        rows.append(
            {"stage": item.stage, **item.change.as_dict(), "p_adjusted": p, "share": item.share, "ok": ok,
             "sentence": words}
        )  # fmt: skip
    return checks, tuple(rows)


def next_step(decisions: Sequence[StageDecision], *, most_data: int = 1, most_replay: int = 1) -> NextStep:
    """What follows on a stage's decisions so far, the latest last: bounded, and never past a failed gate.

    First more data where the stage itself is weak, then more replay, then the end with the evidence. A stage
    that only forgot gets replay at once.
    """
    assert decisions
    latest = decisions[-1]
    if latest.passed:
        return "advance"
    tries = [_remedy(decision) for decision in decisions[:-1]]
    wanted = _remedy(latest)
    if wanted == "more_data" and tries.count("more_data") >= most_data:
        wanted = "more_replay"
    # Attempts beyond the data's share were given replay whatever they lacked.
    replays = tries.count("more_replay") + max(0, tries.count("more_data") - most_data)
    if wanted == "more_replay" and replays >= most_replay:
        return "stop"
    return wanted


def _remedy(decision: StageDecision) -> Literal["more_data", "more_replay"]:
    return "more_data" if decision.weak else "more_replay"


def _share(answers: Sequence[bool]) -> float:
    return sum(answers) / len(answers) if answers else 0.0
