"""The gap's classes and the decision about a new version."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.evals.gap import Gap, classify, gap_of
from scaler_wizard.evals.promotion import Change, decide_promotion

GOOD = Gap(1.0, 1.1, 0.1, (0.0, 0.2), "good")


def change(n: int, before: int, after: int, name: str = "easy") -> Change:
    """`before` right answers of n, then `after`; whoever falls loses without gaining."""
    return Change(name, (True,) * before + (False,) * (n - before), (True,) * after + (False,) * (n - after))


@pytest.mark.parametrize(
    ("gap", "kind"),
    [
        (-1.0, "good"),
        (0.29, "good"),
        (0.3, "watch"),
        (0.5, "watch"),
        (0.51, "overfit"),
        (math.nan, "overfit"),
    ],
)
def test_classes_of_the_gap(gap: float, kind: str) -> None:
    assert classify(gap) == kind


def test_a_gap_of_few_rows_is_not_certain() -> None:
    few = gap_of([1.0, 2.0], [2.0, 3.0])
    many = gap_of([1.0, 2.0] * 50, [2.0, 3.0] * 50)
    assert few.value == many.value == 1.0
    assert few.kind == many.kind == "overfit"
    assert not few.certain
    assert many.certain
    assert gap_of([1.0], [2.0]).ci95 is None


def test_a_gap_without_held_out_rows_is_not_measured() -> None:
    assert gap_of([1.0], []) == Gap(1.0, None, None, None, "not measured")


def test_what_rises_is_promoted() -> None:
    decision = decide_promotion([change(120, 60, 90)], most_fall=0.1, loss=1.0, gap=GOOD)
    assert decision.promote
    assert not decision.warnings


def test_a_large_certain_fall_is_held() -> None:
    decision = decide_promotion(
        [change(120, 110, 80), change(120, 10, 60, "hard")], most_fall=0.1, loss=1.0, gap=GOOD
    )
    assert not decision.promote
    assert len(decision.reasons) == 1
    assert "easy: accuracy fell from 0.917 to 0.667 (n 120" in decision.reasons[0]


def test_a_large_fall_that_may_be_chance_only_warns() -> None:
    decision = decide_promotion([change(8, 5, 3)], most_fall=0.1, loss=1.0, gap=GOOD)
    assert decision.promote
    assert "could be chance" in decision.warnings[0]


def test_a_certain_fall_within_the_limit_only_warns() -> None:
    decision = decide_promotion([change(1000, 900, 850)], most_fall=0.1, loss=1.0, gap=GOOD)
    assert decision.promote
    assert "within the 10%" in decision.warnings[0]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_held(loss: float) -> None:
    assert not decide_promotion([], most_fall=0.1, loss=loss, gap=GOOD).promote


def test_overfitting_warns() -> None:
    decision = decide_promotion([], most_fall=0.1, loss=1.0, gap=Gap(1.0, 1.9, 0.9, (0.8, 1.0), "overfit"))
    assert decision.promote
    assert "overfit" in decision.warnings[0]
    assert "chance" not in decision.warnings[0]


def test_more_sets_of_questions_need_stronger_evidence() -> None:
    # One fall of 6 of 30, nothing gained: p = 0.031 alone, 0.16 as the smallest of five.
    fallen = change(30, 30, 24)
    still = [change(30, 20, 20, f"set {number}") for number in range(4)]
    assert not decide_promotion([fallen], most_fall=0.1, loss=1.0, gap=GOOD).promote
    assert decide_promotion([fallen, *still], most_fall=0.1, loss=1.0, gap=GOOD).promote


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_nothing_is_held_that_did_not_fall(pairs: list[tuple[bool, bool]]) -> None:
    answered = Change("x", tuple(b for b, _ in pairs), tuple(a for _, a in pairs))
    decision = decide_promotion([answered], most_fall=0.1, loss=1.0, gap=GOOD)
    assert decision.promote or answered.fall > 0.1
    found = answered.as_dict()
    assert found["gained"] - found["lost"] == sum(answered.after) - sum(answered.before)
