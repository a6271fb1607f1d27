"""Confidence intervals, paired tests and effect sizes. Pure Python: no torch, no scipy, no model.

Two-sided 95% unless told otherwise. Proportions use Wilson's interval, because the normal approximation
gives an interval of width zero at 0 of n and n of n, which is where gates decide.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import TypeAlias

Interval: TypeAlias = tuple[float, float]
CONFIDENCE = 0.95


def normal_quantile(confidence: float) -> float:
    """z with P(|Z| <= z) = confidence for a standard normal Z; 1.96 at 0.95."""
    assert 0 < confidence < 1
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927). (0, 1) when nothing was tried."""
    assert 0 <= successes <= n
    if n == 0:
        return (0.0, 1.0)
    z = normal_quantile(confidence)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The exact bounds at 0 of n and n of n are 0 and 1; rounding must not push them inside.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return (low, high)


def wilson_lower_bound(successes: int, n: int, confidence: float = CONFIDENCE) -> float:
    """Lower end of the two-sided Wilson interval: what a gate may rely on."""
    return wilson_interval(successes, n, confidence)[0]


def binomial_tail(successes: int, n: int, p: float) -> float:
    """P(X >= successes) for X binomial with n trials of probability 0 < p < 1."""
    assert 0 < p < 1
    log_p, log_q = math.log(p), math.log1p(-p)
    terms = (
        math.exp(
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_p + (n - k) * log_q
        )
        for k in range(successes, n + 1)
    )
    return min(1.0, math.fsum(terms))


def significantly_above(successes: int, n: int, chance: float, level: float = 0.025) -> bool:
    """Whether guessing with probability `chance` scores this high less often than `level` (exact binomial).

    Not Wilson's lower bound: at a chance of 1/64 and 48 trials that one lies above chance for 5.5% of all
    guessers instead of 2.5%.
    """
    return n > 0 and binomial_tail(successes, n, chance) < level


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean with what is known about it; standard error and interval are NaN below two values."""

    mean: float
    standard_error: float
    n: int
    ci95: Interval

    def as_dict(self) -> dict[str, object]:
        """JSON-ready fields; a number that is not finite becomes None."""
        low, high = self.ci95
        finite = {"mean": self.mean, "standard_error": self.standard_error, "low": low, "high": high}
        clean = {key: value if math.isfinite(value) else None for key, value in finite.items()}
        return {
            "mean": clean["mean"],
            "standard_error": clean["standard_error"],
            "n": self.n,
            "ci95": [clean["low"], clean["high"]],
        }


def mean_estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> MeanEstimate:
    """Mean, standard error s / sqrt(n) and Student-t interval with n - 1 degrees of freedom."""
    n = len(values)
    if n == 0:
        return MeanEstimate(math.nan, math.nan, 0, (math.nan, math.nan))
    mean = fmean(values)
    if n == 1 or not math.isfinite(mean):
        return MeanEstimate(mean, math.nan, n, (math.nan, math.nan))
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    error = math.sqrt(variance / n)
    half = student_t_quantile(confidence, n - 1) * error
    return MeanEstimate(mean, error, n, (mean - half, mean + half))


def paired_difference(
    after: Sequence[float], before: Sequence[float], confidence: float = CONFIDENCE
) -> MeanEstimate:
    """Mean of after - before over pairs, with its standard error and Student-t interval.

    Raises ValueError when the two differ in length: then they are not pairs.
    """
    if len(after) != len(before):
        raise ValueError(f"{len(after)} values after and {len(before)} before, expected pairs")
    return mean_estimate([a - b for a, b in zip(after, before, strict=True)], confidence)


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = fmean,
    *,
    seed: int = 0,
    n_resamples: int = 2000,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile bootstrap interval of any statistic; equal arguments give equal bounds."""
    assert values
    rng = random.Random(seed)
    found = sorted(statistic(rng.choices(values, k=len(values))) for _ in range(n_resamples))
    tail = (1 - confidence) / 2
    last = n_resamples - 1
    return (found[math.floor(tail * last)], found[math.ceil((1 - tail) * last)])


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's test on paired right/wrong answers."""

    n01: int
    """Pairs wrong before and right after."""
    n10: int
    """Pairs right before and wrong after."""
    statistic: float
    """Chi-squared with continuity correction, (|n01 - n10| - 1)^2 / (n01 + n10), 1 degree of freedom."""
    p_value: float
    """Two-sided, from the chi-squared distribution."""
    p_exact: float
    """Two-sided, from the binomial distribution; the one to use below 25 discordant pairs."""


def mcnemar(n01: int, n10: int) -> McNemar:
    """McNemar's paired test (McNemar 1947, continuity correction by Edwards 1948)."""
    assert n01 >= 0
    assert n10 >= 0
    discordant = n01 + n10
    if discordant == 0:
        return McNemar(n01, n10, 0.0, 1.0, 1.0)
    statistic = max(0, abs(n01 - n10) - 1) ** 2 / discordant
    # The survival function of chi-squared with 1 degree of freedom is erfc(sqrt(x / 2)).
    p_value = math.erfc(math.sqrt(statistic / 2))
    tail = sum(math.comb(discordant, k) for k in range(min(n01, n10) + 1))
    return McNemar(n01, n10, statistic, p_value, min(1.0, 2 * tail / 2**discordant))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order (Benjamini & Hochberg 1995).

    Rejecting every hypothesis whose adjusted value is at most q keeps the false discovery rate at q.
    """
    m = len(p_values)
    order = sorted(range(m), key=lambda i: p_values[i], reverse=True)
    adjusted, smallest = [0.0] * m, 1.0
    for rank_from_top, index in enumerate(order):
        smallest = min(smallest, p_values[index] * (m / (m - rank_from_top)))
        adjusted[index] = smallest
    return adjusted


def cohens_h(before: float, after: float) -> float:
    """Effect size of two proportions, 2 asin(sqrt(after)) - 2 asin(sqrt(before)) (Cohen 1988)."""
    return 2 * math.asin(math.sqrt(after)) - 2 * math.asin(math.sqrt(before))


def ratio_interval(successes: int, n: int, base_successes: int, base_n: int) -> Interval:
    """95% interval of the ratio of two independent proportions, on the log scale (Katz et al. 1978).

    Half a success and half a failure are added to each side, so that zeros give a bound and not an error.
    """
    assert n > 0
    assert base_n > 0
    a, b = successes + 0.5, base_successes + 0.5
    error = math.sqrt(1 / a - 1 / (n + 1) + 1 / b - 1 / (base_n + 1))
    centre = math.log(a / (n + 1)) - math.log(b / (base_n + 1))
    z = normal_quantile(CONFIDENCE)
    return (math.exp(centre - z * error), math.exp(centre + z * error))


def student_t_quantile(confidence: float, degrees: int) -> float:
    """t with P(|T| <= t) = confidence, by bisection of the distribution function."""
    assert 0 < confidence < 1
    assert degrees >= 1
    low, high = 0.0, 1.0
    while 1 - _t_tail(high, degrees) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - _t_tail(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def _t_tail(t: float, degrees: int) -> float:
    """P(|T| > t) = I_x(degrees / 2, 1 / 2) at x = degrees / (degrees + t^2) (Abramowitz & Stegun 26.7.1)."""
    return _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by the continued fraction DLMF 8.17.22."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    # Lentz's method: numerator and denominator of the convergents, kept as ratios.
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction / a
