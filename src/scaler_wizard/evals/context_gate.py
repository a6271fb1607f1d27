"""Whether a longer context may be kept: a pure decision over measured results. Torch-free.

Four checks, each with its number, its limit and a sentence:

nll         paired same-target NLL against the base window <= epsilon + 2 standard errors
needle      found at every depth (>= 5) and pooled at least 0.9 times as often as at the base length
recency     the latest assignment wins at least 0.9 times as often as at the base length
short_nll   NLL within the base context rose by at most `short_tolerance`

A needle or recency probe that the model fails already at its base length says nothing about the context: it
is reported as uninformative and does not gate. Recency then rests on the last quarter of the targets' NLL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scaler_wizard.evals.results import NeedleResult, NllResult, RecencyResult, ShortNllResult
from scaler_wizard.evals.statistics import MeanEstimate
from scaler_wizard.safety.checks import Check
from scaler_wizard.specs.grow import EvaluationSection

KEPT_SHARE = 0.9
MIN_DEPTHS = 5


@dataclass(frozen=True, slots=True)
class ContextMeasurements:
    """Everything measured for one decision at one length."""

    nll: NllResult
    """At the new length."""
    needle_base: NeedleResult
    """At the base length, before the change."""
    needle: NeedleResult
    """At the new length."""
    recency_base: RecencyResult
    recency: RecencyResult
    short_before: ShortNllResult
    short_after: ShortNllResult


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The decision; `reasons` says in words what failed, or what it passed on."""

    length: int
    passed: bool
    reasons: tuple[str, ...]
    checks: Mapping[str, Check]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "length": self.length,
            "passed": self.passed,
            "reasons": list(self.reasons),
            "checks": {
                name: {
                    "value": _finite(check.value),
                    "limit": _finite(check.limit),
                    "ok": check.ok,
                    "sentence": check.sentence,
                }
                for name, check in self.checks.items()
            },
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def judge_context(measured: ContextMeasurements, section: EvaluationSection) -> GateVerdict:
    """Decide whether the measured length passes. A number that is not finite never passes."""
    checks = {
        "nll": _nll_check("same-target loss against the base window", measured.nll.difference, section),
        "needle": _needle_check(measured.needle_base, measured.needle),
        "recency": _recency_check(measured, section),
        "short_nll": _short_check(measured.short_before, measured.short_after, section),
    }
    failed = tuple(check.sentence for check in checks.values() if not check.ok)
    reasons = failed or tuple(check.sentence for check in checks.values())
    return GateVerdict(measured.nll.length, not failed, reasons, checks)


def nll_limit(difference: MeanEstimate, epsilon: float) -> float:
    """Largest accepted mean difference: epsilon plus two standard errors of the paired difference."""
    return epsilon + 2 * difference.standard_error


def _nll_check(name: str, difference: MeanEstimate, section: EvaluationSection) -> Check:
    limit = nll_limit(difference, section.epsilon)
    ok = math.isfinite(difference.mean) and difference.mean <= limit
    sign = "within" if ok else "above"
    sentence = f"{name} {difference.mean:+.3f} nats per token, {sign} {limit:.3f} (n={difference.n})"
    return Check(difference.mean, limit, ok, sentence)


def _needle_check(base: NeedleResult, now: NeedleResult) -> Check:
    if not base.informative:
        return Check(now.value, None, True, f"needle uninformative: {_at_base(base)}; it does not gate")
    assert len(now.by_depth) >= MIN_DEPTHS
    assert base.value is not None
    limit = KEPT_SHARE * base.value
    # A depth has few needles: it fails when even the upper end of its interval is below the limit.
    lost = [f"{depth.depth:g}" for depth in now.by_depth if depth.accuracy.ci95[1] < limit]
    pooled_ok = now.value is not None and now.value >= limit
    found = f"needle {now.value or 0:.2f} against {base.value:.2f} at {base.length} tokens"
    if lost:
        return Check(now.value, limit, False, f"{found}: lost at depth {', '.join(lost)}")
    if not pooled_ok:
        return Check(now.value, limit, False, f"{found}: below {limit:.2f}")
    return Check(now.value, limit, True, f"{found}: holds at {len(now.by_depth)} depths")


def _recency_check(measured: ContextMeasurements, section: EvaluationSection) -> Check:
    base, now = measured.recency_base, measured.recency
    if not base.informative or base.value is None:
        return _nll_check("recency by the last targets' loss", measured.nll.recent_difference, section)
    limit = KEPT_SHARE * base.value
    # Twice 24 prompts as a rule: like a depth, judged by the upper end of its interval.
    ok = now.pooled.ci95[1] >= limit
    verb = "holds" if ok else f"below {limit:.2f}"
    return Check(now.value, limit, ok, f"recency {now.value or 0:.2f} against {base.value:.2f}: {verb}")


def _short_check(before: ShortNllResult, after: ShortNllResult, section: EvaluationSection) -> Check:
    assert before.value is not None
    assert after.value is not None
    limit = before.value * (1 + section.short_tolerance)
    ok = math.isfinite(after.value) and after.value <= limit
    rise = after.value / before.value - 1 if before.value else math.nan
    verb = "within" if ok else "above"
    sentence = f"short-context loss {rise:+.1%}, {verb} {section.short_tolerance:.1%} (n={after.n})"
    return Check(after.value, limit, ok, sentence)


def _at_base(base: NeedleResult) -> str:
    return f"{base.value or 0:.2f} at {base.length} tokens is not above chance ({base.chance or 0:.3f})"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to stretch positions, scored untrained."""

    method: str
    measured: ContextMeasurements
    verdict: GateVerdict


def allowance_used(candidate: Candidate, section: EvaluationSection) -> float:
    """How much of what the gate allows a candidate uses up: the sum of its NLL and its needle part.

    NLL part: mean difference / (epsilon + 2 SE). Needle part: (1 - accuracy / base accuracy) / 0.1, left out
    where the needle is uninformative. Each part is 1 at its limit and below 0 where the longer context
    helps. Both count because each alone ranks differently: at four times the context of the embedded model
    the order by NLL puts linear interpolation last, the order by needle puts it first.
    """
    nll, needle, base = candidate.measured.nll, candidate.measured.needle, candidate.measured.needle_base
    if not math.isfinite(nll.difference.mean):
        return math.inf
    limit = max(nll_limit(nll.difference, section.epsilon), 1e-6)
    used = nll.difference.mean / limit
    if base.informative and base.value:
        used += (1 - (needle.value or 0.0) / base.value) / (1 - KEPT_SHARE)
    return used


def rank_candidates(candidates: Sequence[Candidate], section: EvaluationSection) -> list[Candidate]:
    """Candidates that pass the gate first, then by rising `allowance_used`; equal ones keep their order.

    All must be measured against one reference, the unchanged model's base window (`base_window_losses`).
    Against its own base window a method that ruins every length looks harmless: on stories260k at 1,024
    tokens linear interpolation passes the loss check that way, with a loss within 512 tokens 71% higher.
    """
    assert len({candidate.measured.nll.per_document_base for candidate in candidates}) <= 1
    return sorted(candidates, key=lambda c: (not c.verdict.passed, allowance_used(c, section)))


def effective_context(base_length: int, verdicts: Sequence[GateVerdict]) -> int:
    """The last length up to which every gate passed; the base length when the first one failed."""
    reached = base_length
    for verdict in sorted(verdicts, key=lambda verdict: verdict.length):
        if not verdict.passed:
            break
        reached = max(reached, verdict.length)
    return reached
