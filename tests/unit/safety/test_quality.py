import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.safety.quality import emergent_vibe_score, trend

CHANGE = st.one_of(st.none(), st.floats(-0.999, 1e6))
DELTA = st.one_of(st.none(), st.floats(-1, 1))


def test_as_good_as_before_is_one_half() -> None:
    assert emergent_vibe_score(0.0) == 0.5
    assert emergent_vibe_score(0.0, 0.0) == 0.5
    assert emergent_vibe_score(None, 0.0) == 0.5
    assert emergent_vibe_score(None) is None


def test_by_hand() -> None:
    assert emergent_vibe_score(1 / 1.25 - 1) == pytest.approx((1 + math.tanh(1)) / 2)
    assert emergent_vibe_score(0.25, -0.2) == pytest.approx((1 - math.tanh(1)) / 2)
    # A task that lost 10 points takes a quarter, one that lost 20 or more a half.
    assert emergent_vibe_score(0.0, 0.0, 0.1) == pytest.approx(0.375)
    assert emergent_vibe_score(0.0, 0.0, 0.5) == pytest.approx(0.25)


def test_a_broken_task_is_never_hidden_by_a_mean_gain() -> None:
    score = emergent_vibe_score(-0.9, 0.9, 0.2)
    assert score is not None
    assert score <= 0.5
    assert emergent_vibe_score(0.0, 0.0, math.nan) == 0.25


@given(CHANGE, DELTA, st.floats(-1, 1))
def test_in_range_and_monotone(change: float | None, delta: float | None, drop: float) -> None:
    score = emergent_vibe_score(change, delta, drop)
    if score is None:
        assert change is None
        assert delta is None
        return
    assert 0 <= score <= 1
    if change is not None:
        worse = emergent_vibe_score(change + 0.1, delta, drop)
        assert worse is not None
        assert worse <= score + 1e-12


def test_not_finite_perplexity() -> None:
    assert emergent_vibe_score(math.inf) == 0
    assert emergent_vibe_score(math.nan) is None


def test_trend() -> None:
    assert trend(None) == "unknown"
    assert trend(math.nan) == "unknown"
    assert trend(0.1, 0.01) == "worsening"
    assert trend(-0.1, 0.01) == "improving"
    assert trend(0.1, 0.05) == "steady"
    assert trend(0.0) == "steady"
