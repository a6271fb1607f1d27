from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.evals import statistics as s


@pytest.mark.parametrize(("enough", "n"), [(293, 300), (485, 500), (964, 1000)])
def test_wilson_lower_bound_needs_the_documented_counts_for_95_percent(enough: int, n: int) -> None:
    assert s.wilson_lower_bound(enough, n) >= 0.95 > s.wilson_lower_bound(enough - 1, n)


def test_wilson_interval_of_the_textbook() -> None:
    low, high = s.wilson_interval(5, 10)
    assert (round(low, 4), round(high, 4)) == (0.2366, 0.7634)
    assert s.wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_proportion_and_mirrors(case: tuple[int, int]) -> None:
    k, n = case
    low, high = s.wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert s.wilson_interval(n - k, n) == pytest.approx((1 - high, 1 - low))


def test_mcnemar_known_answer_is_with_continuity_correction() -> None:
    found = s.mcnemar(57, 2)
    assert round(found.statistic, 2) == 49.42
    assert found.p_value == pytest.approx(2.06e-12, rel=0.005)
    assert found.p_exact == pytest.approx(2 * (1 + 59 + 59 * 58 / 2) / 2**59)


def test_mcnemar_without_discordant_pairs_says_nothing() -> None:
    assert s.mcnemar(0, 0).p_value == 1.0
    assert s.mcnemar(3, 3).p_exact == 1.0


def test_cohens_h_known_answer() -> None:
    assert round(s.cohens_h(243 / 300, 298 / 300), 2) == 0.74
    assert s.cohens_h(0.9, 0.1) == -s.cohens_h(0.1, 0.9)


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (47, 2.0117), (1000, 1.9623)]
)
def test_student_t_quantiles_of_the_tables(degrees: int, expected: float) -> None:
    assert s.student_t_quantile(0.95, degrees) == pytest.approx(expected, abs=5e-5)


def test_paired_difference_by_hand() -> None:
    found = s.paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.ci95 == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
    with pytest.raises(ValueError, match="pairs"):
        s.paired_difference([1.0], [1.0, 2.0])


def test_estimates_of_nothing_and_of_broken_values_are_not_numbers() -> None:
    assert math.isnan(s.mean_estimate([]).mean)
    assert math.isnan(s.mean_estimate([1.0]).standard_error)
    assert s.mean_estimate([1.0, math.nan]).as_dict()["mean"] is None


def test_benjamini_hochberg_by_hand() -> None:
    adjusted = s.benjamini_hochberg([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert s.benjamini_hochberg([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_keeps_the_order_and_never_lowers(p_values: list[float]) -> None:
    adjusted = s.benjamini_hochberg(p_values)
    assert all(a >= p and a <= 1 for a, p in zip(adjusted, p_values, strict=True))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_bootstrap_agrees_with_the_t_interval_and_repeats() -> None:
    values = [math.sin(i) for i in range(60)]
    low, high = s.bootstrap_interval(values, seed=3)
    assert (low, high) == pytest.approx(s.mean_estimate(values).ci95, abs=0.03)
    assert (low, high) == s.bootstrap_interval(values, seed=3) != s.bootstrap_interval(values, seed=4)


def test_ratio_interval_holds_the_ratio_and_survives_zero() -> None:
    low, high = s.ratio_interval(40, 100, 80, 100)
    assert low < 0.5 < high
    assert s.ratio_interval(0, 50, 50, 50)[0] >= 0


def test_binomial_tail_by_hand_and_the_level_it_keeps() -> None:
    assert s.binomial_tail(0, 10, 0.3) == pytest.approx(1.0)
    assert s.binomial_tail(9, 10, 0.5) == pytest.approx(11 / 1024)
    assert s.binomial_tail(10_000, 10_000, 0.5) == 0.0
    assert not s.significantly_above(0, 0, 0.5)
    # The share of guessers called better than chance stays below the level for every n and chance.
    for n, chance in [(16, 1 / 64), (48, 1 / 64), (120, 1 / 64), (10, 0.25), (120, 0.25)]:
        first = next(k for k in range(n + 1) if s.significantly_above(k, n, chance))
        assert s.binomial_tail(first, n, chance) < 0.025 <= s.binomial_tail(first - 1, n, chance)
