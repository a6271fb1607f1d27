import math
import random

import pytest

from scaler_wizard.safety.significance import fit_slope, prediction_bound, significant_rise, t_quantile


def test_fit_slope_by_hand() -> None:
    # x = 0, 1, 3; y = 1, 2, 6: Sxx = 14/3, Sxy = 8, slope 12/7; SSE = 2/7.
    slope, error = fit_slope([0, 1, 3], [1, 2, 6])
    assert slope == pytest.approx(12 / 7)
    assert error == pytest.approx(math.sqrt((2 / 7) / 1 / (14 / 3)))


@pytest.mark.parametrize(("degrees", "expected"), [(8, 7.595), (20, 5.036), (60, 4.302)])
def test_t_quantile_is_close_to_the_exact_one(degrees: int, expected: float) -> None:
    # Exact quantiles at the tail probability of z = 4 (3.17e-5), from scipy.stats.t.isf.
    assert t_quantile(4.0, degrees) == pytest.approx(expected, rel=0.02)


def test_a_rise_below_the_limit_is_none_however_certain() -> None:
    steps = list(range(10))
    values = [10 + 0.2 * step for step in steps]
    assert significant_rise(steps, values, 10, limit=0.15)
    assert not significant_rise(steps, values, 10, limit=0.25)


def test_a_jump_needs_a_known_noise() -> None:
    noise = random.Random(1)
    before = [50 * math.exp(noise.gauss(0, 0.1)) for _ in range(30)]
    jump = [*before, 400.0, 410.0, 390.0]
    assert significant_rise(list(range(33)), jump, 10, limit=0.15)
    # Without a past, the jump's own residuals are all that is known, and they are large.
    assert not significant_rise(list(range(10)), jump[-10:], 10, limit=0.15)


def test_prediction_bound_covers_the_next_value() -> None:
    noise = random.Random(2)
    draws = [[noise.lognormvariate(-2, 0.4) for _ in range(11)] for _ in range(2000)]
    assert sum(row[-1] > prediction_bound(row[:-1]) for row in draws) <= 1
    assert prediction_bound([1.5] * 10) == pytest.approx(1.5)
