"""Temperature, thresholds and the choice among routers, against answers found by hand."""

from __future__ import annotations

import math
import random

import pytest

from scaler_wizard.evals.calibration import (
    choose_threshold,
    fit_temperature,
    mean_nll,
    risk_coverage,
    softmax,
)
from scaler_wizard.evals.router_choice import choose_router


def overconfident(n: int, factor: float) -> tuple[list[list[float]], list[int]]:
    """Logits that are `factor` times those of a model that is right as often as it says."""
    rng = random.Random(0)
    logits, truths = [], []
    for _ in range(n):
        row = [rng.gauss(0, 1.5) for _ in range(3)]
        truths.append(rng.choices(range(3), weights=softmax(row))[0])
        logits.append([factor * value for value in row])
    return logits, truths


def test_softmax_and_nll_by_hand() -> None:
    assert softmax([0.0, math.log(3)]) == pytest.approx((0.25, 0.75))
    assert softmax([0.0, 2 * math.log(3)], 2.0) == pytest.approx((0.25, 0.75))
    assert mean_nll([[0.0, math.log(3)]], [0]) == pytest.approx(math.log(4))
    assert mean_nll([[1e6, 0.0]], [1]) == pytest.approx(1e6)


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_the_fitted_temperature_undoes_over_and_underconfidence(factor: float) -> None:
    logits, truths = overconfident(4000, factor)
    temperature = fit_temperature(logits, truths)
    assert temperature == pytest.approx(factor, rel=0.1)
    grid = [temperature * step for step in (0.8, 0.9, 1.1, 1.25)]
    assert all(mean_nll(logits, truths, temperature) <= mean_nll(logits, truths, t) for t in grid)


def test_rows_that_are_all_right_do_not_make_it_surer() -> None:
    assert fit_temperature([[2.0, 0.0], [0.0, 2.0]], [0, 1]) == pytest.approx(1.0)


def test_risk_and_coverage_by_hand() -> None:
    curve = risk_coverage([0.9, 0.8, 0.8, 0.4], [True, True, False, False])
    assert [(p.threshold, p.coverage, p.accuracy) for p in curve] == [
        (0.4, 1.0, 0.5),
        (0.8, 0.75, pytest.approx(2 / 3)),
        (0.9, 0.25, 1.0),
    ]


def test_the_lowest_threshold_that_reaches_the_target() -> None:
    confidence, right = [0.9, 0.8, 0.7, 0.4], [True, True, True, False]
    chosen = choose_threshold(confidence, right, 0.99)
    assert chosen.threshold == pytest.approx(0.55)
    assert (chosen.coverage, chosen.accuracy, chosen.reached) == (0.75, 1.0, True)
    assert choose_threshold(confidence, right, 0.75).threshold == 0.0


def test_a_target_that_cannot_be_reached_is_said() -> None:
    chosen = choose_threshold([0.9, 0.8], [False, True], 0.9)
    assert not chosen.reached
    assert (chosen.threshold, chosen.accuracy) == (0.8, 0.5)
    assert "no threshold reaches 0.900" in chosen.reason


def test_the_cheapest_within_chance_is_kept() -> None:
    good = [True] * 98 + [False] * 2
    nearly = [True] * 95 + [False] * 5
    bad = [True] * 60 + [False] * 40
    close = choose_router([nearly, good], ["probe", "suffix"])
    assert (close.index, close.name, close.best) == (0, "probe", "suffix")
    assert "within chance" in close.reason
    far = choose_router([bad, good, good], ["probe", "suffix", "early"])
    assert (far.index, far.best) == (1, "suffix")
    assert far.comparisons[0].only_best_right == 38
    assert far.comparisons[0].p_value < 1e-6
    assert choose_router([good]).index == 0
