from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from scaler_wizard.evals.context_gate import (
    Candidate,
    ContextMeasurements,
    allowance_used,
    effective_context,
    judge_context,
    rank_candidates,
)
from scaler_wizard.evals.results import (
    DepthAccuracy,
    NeedleResult,
    NllResult,
    Proportion,
    RecencyResult,
    ShortNllResult,
)
from scaler_wizard.evals.retention import context_retention
from scaler_wizard.evals.statistics import MeanEstimate
from scaler_wizard.specs.grow import EvaluationSection

SECTION = EvaluationSection()


def needle(
    length: int, correct: list[int], per_depth: int = 24, beyond: tuple[int, int] = (0, 0)
) -> NeedleResult:
    pooled = Proportion(sum(correct), per_depth * len(correct))
    return NeedleResult(
        value=pooled.accuracy, n=pooled.n, ci95=pooled.ci95, baseline=0.2, chance=1 / 64, seed=0,
        length=length, base_length=128, style="generated", scoring="vocabulary", pooled=pooled,
        by_depth=tuple(DepthAccuracy(i / 4, Proportion(k, per_depth)) for i, k in enumerate(correct)),
        beyond=Proportion(*beyond), truncated_beyond=Proportion(0, beyond[1]),
        informative=pooled.above(1 / 64),
    )  # fmt: skip


def estimate(mean: float, error: float = 0.02) -> MeanEstimate:
    return MeanEstimate(mean, error, 48, (mean - 2 * error, mean + 2 * error))


def nll(mean: float, error: float = 0.02, recent: float | None = None, length: int = 256) -> NllResult:
    return NllResult(
        value=mean, n=48, ci95=(mean, mean), baseline=3.0, chance=7.0, seed=0, length=length, base_length=128,
        difference=estimate(mean, error),
        recent_difference=estimate(mean if recent is None else recent, error),
        nll=3 + mean, perplexity=20.0, perplexity_ci95=(19.0, 21.0), by_position=(), per_document=(),
        per_document_base=(),
    )  # fmt: skip


def recency(correct: int) -> RecencyResult:
    pooled = Proportion(correct, 48)
    return RecencyResult(
        value=pooled.accuracy, n=48, ci95=pooled.ci95, baseline=0.5, chance=1 / 64, seed=0,
        length=256, updates=2, pooled=pooled, stale=Proportion(0, 48), informative=pooled.above(1 / 64),
    )  # fmt: skip


def short(value: float) -> ShortNllResult:
    return ShortNllResult(
        value=value, n=48, ci95=None, baseline=None, chance=7.0, seed=0, length=128, perplexity=20.0,
        perplexity_ci95=(19.0, 21.0), per_document=(),
    )  # fmt: skip


def measured(**changes: Any) -> ContextMeasurements:
    good = ContextMeasurements(
        nll=nll(-0.02),
        needle_base=needle(128, [23] * 5),
        needle=needle(256, [23] * 5),
        recency_base=recency(46),
        recency=recency(45),
        short_before=short(3.0),
        short_after=short(3.01),
    )
    return replace(good, **changes)


def test_a_good_extension_passes_and_says_why() -> None:
    verdict = judge_context(measured(), SECTION)
    assert verdict.passed
    assert len(verdict.reasons) == 4
    assert all(check.ok for check in verdict.checks.values())
    assert verdict.as_dict()["checks"]["nll"]["limit"] == pytest.approx(0.09)


@pytest.mark.parametrize(
    ("changes", "failing", "words"),
    [
        ({"nll": nll(0.0901)}, "nll", "same-target loss"),
        ({"nll": nll(math.nan)}, "nll", "same-target loss"),
        ({"nll": nll(math.inf)}, "nll", "same-target loss"),
        ({"needle": needle(256, [23, 23, 12, 23, 23])}, "needle", "lost at depth 0.5"),
        ({"needle": needle(256, [20] * 5)}, "needle", "below 0.86"),
        ({"recency": recency(30)}, "recency", "recency 0.62 against 0.96"),
        ({"short_after": short(3.031)}, "short_nll", "short-context loss"),
        ({"short_after": short(math.nan)}, "short_nll", "short-context loss"),
    ],
)
def test_each_check_fails_alone(changes: Any, failing: str, words: str) -> None:
    verdict = judge_context(measured(**changes), SECTION)
    assert not verdict.passed
    assert [name for name, check in verdict.checks.items() if not check.ok] == [failing]
    assert len(verdict.reasons) == 1
    assert words in verdict.reasons[0]


def test_the_limits_are_inclusive() -> None:
    assert judge_context(measured(nll=nll(0.0899)), SECTION).passed
    assert judge_context(measured(short_after=short(3.0 * 1.01)), SECTION).passed


def test_an_uninformative_needle_does_not_gate_but_says_so() -> None:
    poor = {"needle_base": needle(128, [1, 0, 1, 0, 1]), "needle": needle(256, [0] * 5)}
    verdict = judge_context(measured(**poor), SECTION)
    assert verdict.passed
    assert verdict.checks["needle"].limit is None
    assert "uninformative" in verdict.checks["needle"].sentence


def test_uninformative_recency_rests_on_the_last_targets() -> None:
    poor = {"recency_base": recency(1), "recency": recency(0)}
    assert judge_context(measured(**poor), SECTION).passed
    verdict = judge_context(measured(**poor, nll=nll(0.0, recent=0.2)), SECTION)
    assert [name for name, check in verdict.checks.items() if not check.ok] == ["recency"]


def candidate(method: str, **changes: Any) -> Candidate:
    found = measured(**changes)
    return Candidate(method, found, judge_context(found, SECTION))


def test_candidates_rank_by_gate_then_by_both_measures() -> None:
    linear = candidate("linear", nll=nll(0.9), needle=needle(256, [22] * 5))
    yarn = candidate("yarn", nll=nll(0.12), needle=needle(256, [14] * 5))
    none = candidate("none", nll=nll(0.4), needle=needle(256, [3] * 5))
    good = candidate("llama3", nll=nll(0.05))
    better = candidate("ntk", nll=nll(-0.05))
    broken = candidate("dynamic", nll=nll(math.nan))
    ranked = [c.method for c in rank_candidates([broken, none, linear, yarn, good, better], SECTION)]
    assert ranked == ["ntk", "llama3", "yarn", "linear", "none", "dynamic"]
    assert allowance_used(good, SECTION) == pytest.approx(0.05 / 0.09)


def test_candidates_with_references_of_their_own_are_not_compared() -> None:
    other = replace(nll(0.0), per_document_base=(2.0, 3.0))
    with pytest.raises(AssertionError):
        rank_candidates([candidate("linear", nll=other), candidate("yarn")], SECTION)


def test_a_passing_candidate_is_never_behind_a_failing_one() -> None:
    fails_short_only = candidate("yarn", nll=nll(-0.5), short_after=short(3.2))
    passes = candidate("linear", nll=nll(0.05))
    assert [c.method for c in rank_candidates([fails_short_only, passes], SECTION)] == ["linear", "yarn"]


def test_effective_context_stops_at_the_first_failure() -> None:
    passed = [judge_context(measured(nll=nll(0.0, length=length)), SECTION) for length in (512, 256)]
    failed = judge_context(measured(nll=nll(1.0, length=1024)), SECTION)
    later = judge_context(measured(nll=nll(0.0, length=2048)), SECTION)
    assert effective_context(128, [*passed, failed, later]) == 512
    assert effective_context(128, [failed]) == 128
    assert effective_context(128, []) == 128


def test_retention_is_the_ratio_of_beyond_to_within() -> None:
    found = context_retention(needle(128, [24] * 5), needle(256, [12] * 5, beyond=(18, 36)))
    assert found.value == 0.5
    assert found.ci95 is not None
    assert found.ci95[0] < 0.5 < found.ci95[1]
    assert context_retention(needle(128, [0] * 5), needle(256, [0] * 5, beyond=(0, 36))).value is None


def test_decisions_and_statistics_start_without_torch() -> None:
    code = (
        "import sys, scaler_wizard.evals.context_gate, scaler_wizard.evals.retention, "
        "scaler_wizard.evals.statistics, scaler_wizard.evals.settings; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
