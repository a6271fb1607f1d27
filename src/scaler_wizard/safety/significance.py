"""Is this rise real? The small statistics behind the circuit breaker, on plain floats.

Knows sequences of numbers and their noise. Does not know what is done about a rise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

SIGNIFICANCE = 4.0
"""Standard normal quantile of every noise bound: one false alarm in 30,000 independent windows."""


def fit_slope(steps: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope of values per step, and its standard error sqrt(SSE / (n - 2) / Sxx); n >= 3."""
    n = len(steps)
    mean_x, mean_y = math.fsum(steps) / n, math.fsum(value / n for value in values)
    sxx = math.fsum((x - mean_x) ** 2 for x in steps)
    slope = math.fsum((x - mean_x) / sxx * (y - mean_y) for x, y in zip(steps, values, strict=True))
    residuals = [y - mean_y - slope * (x - mean_x) for x, y in zip(steps, values, strict=True)]
    scale = max((abs(r) for r in residuals), default=0.0) or 1.0
    # Scaled so that squares of perplexities near the largest float stay finite.
    sse = math.fsum((r / scale) ** 2 for r in residuals)
    return slope, scale * math.sqrt(sse / (n - 2) / sxx)


def t_quantile(z: float, degrees: float) -> float:
    """Student t quantile at the probability of normal quantile z (Abramowitz & Stegun 26.7.5, 3 terms)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def significant_rise(steps: Sequence[int], values: Sequence[float], window: int, limit: float) -> bool:
    """Whether the slope of ln(perplexity) over the last window is above the limit beyond its noise.

    ln, because noise and divergence both scale with perplexity; the limit becomes limit / geometric mean.
    The noise is known in two ways, and either may prove the rise:

    - residuals of the fit, n - 2 degrees: finds a steady climb as soon as one window is full;
    - successive differences of up to five windows before the latest half window (von Neumann 1941: half
      their variance), once there is a window of them: finds a jump, whose own residuals are large.

    The bound is slope - t * standard error with t at the tail probability of `SIGNIFICANCE`. It must
    hold without the window's highest fifth too: one or two odd batches are no trend.
    """
    points = list(zip(steps[-window:], map(math.log, values[-window:]), strict=True))
    limit_ln = limit / math.exp(math.fsum(y for _, y in points) / window)
    past = [math.log(value) for value in values[: -max(1, window // 2)]]
    sigma, degrees = _difference_noise(past) if len(past) >= window else (math.inf, 1.0)
    highest = sorted(points, key=lambda point: point[1])[-max(1, window // 5) :]
    for kept in (points, [point for point in points if point not in highest]):
        if len(kept) < 3:
            return False
        slope, error = fit_slope([x for x, _ in kept], [y for _, y in kept])
        mean_x = math.fsum(x for x, _ in kept) / len(kept)
        spread = math.sqrt(math.fsum((x - mean_x) ** 2 for x, _ in kept))
        by_residuals = slope - t_quantile(SIGNIFICANCE, len(kept) - 2) * error
        by_history = slope - t_quantile(SIGNIFICANCE, degrees) * sigma / spread
        if max(by_residuals, by_history) <= limit_ln:
            return False
    return True


def prediction_bound(values: Sequence[float]) -> float:
    """Upper prediction bound of the next value, from the mean and deviation of the logarithms.

    A loss near 0 doubles often without meaning anything; the noise of its logarithm says how often.
    """
    logs = [math.log(max(value, 1e-12)) for value in values]
    n = len(logs)
    mean = math.fsum(logs) / n
    deviation = math.sqrt(math.fsum((y - mean) ** 2 for y in logs) / (n - 1))
    exponent = mean + t_quantile(SIGNIFICANCE, n - 1) * deviation * math.sqrt(1 + 1 / n)
    return math.exp(min(exponent, 700.0))


def significant_jump(values: Sequence[float], last: int, least: float, settled: int) -> bool:
    """Whether each of the last values lies more than `least` above the mean of all values before them.

    No test of noise guards that: broken losses scatter so widely (47, 28, 8 nats after 3.3) that they would
    hide themselves in it. 3 values and 2 nats jump in 0.03% of openings of 10 flat losses with a deviation
    of 0.6 nats, in 1.6% at 1.0 nats (batches of a few dozen targets). From `settled` values on, half of
    `least` is enough if the two means differ beyond their noise: pooled two-sample t (Student 1908) at
    `SIGNIFICANCE`; fewer values cannot prove that (t with 2 degrees asks for over 50 standard errors).
    """
    before, after = values[:-last], values[-last:]
    if not before:
        return False
    low, high = math.fsum(before) / len(before), math.fsum(after) / len(after)
    if min(after) > low + least:
        return True
    if len(values) < settled or min(after) <= low + least / 2:
        return False
    scale = max(abs(value) for value in values) or 1.0
    squares = [((v - low) / scale) ** 2 for v in before] + [((v - high) / scale) ** 2 for v in after]
    degrees = len(values) - 2
    error = scale * math.sqrt(math.fsum(squares) / degrees * (1 / len(before) + 1 / len(after)))
    return high - low > t_quantile(SIGNIFICANCE, degrees) * error


def _difference_noise(values: Sequence[float]) -> tuple[float, float]:
    """(sigma of one value, degrees of freedom) from successive differences, their mean taken out.

    The estimate has about 2/3 of the degrees of its differences (von Neumann et al. 1941).
    """
    differences = [b - a for a, b in pairwise(values)]
    mean = math.fsum(differences) / len(differences)
    variance = math.fsum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    return math.sqrt(variance / 2), max(1.0, (len(differences) - 1) * 2 / 3)
