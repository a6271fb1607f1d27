"""The running total and the forecast that every gate shows."""

from __future__ import annotations

import json

import pytest

from scaler_wizard.planning.spend import Spent, bill

PREDICTED = {"P0": 100.0, "P1": 200.0, "P2": 300.0}


def test_before_anything_is_done_the_plan_is_the_forecast() -> None:
    found = bill({}, PREDICTED, 3.6)
    assert (found.spent.seconds, found.left_seconds) == (0.0, 600.0)
    assert found.total_money == pytest.approx(0.6)


def test_the_forecast_is_corrected_by_what_was_measured() -> None:
    """Half as fast as planned so far: what is left will take twice as long as well."""
    found = bill({"P0": Spent(200.0, generated=1000)}, PREDICTED, 7.2)
    assert found.left_seconds == 1000.0
    assert found.total_seconds == 1200.0
    assert found.money == pytest.approx(0.4)
    assert found.total_money == pytest.approx(2.4)
    assert found.words() == "3 min so far, about 20 min in all; 0.40 so far, about 2.40 in all"


def test_a_second_attempt_is_paid_for_and_corrects_nothing() -> None:
    done = {"P0": Spent(100.0), "P1": Spent(200.0), "P1.2": Spent(500.0)}
    found = bill(done, PREDICTED)
    assert (found.spent.seconds, found.left_seconds) == (800.0, 300.0)
    assert found.money is None
    assert "13 min so far" in found.words()


def test_tokens_add_up_and_the_record_is_json() -> None:
    done = {"P0": Spent(1.0, 10, 20, 0), "P1": Spent(2.0, 1, 2, 3)}
    found = json.loads(json.dumps(bill(done, PREDICTED).as_dict()))
    assert (found["generated"], found["scored"], found["trained"]) == (11, 22, 3)


def test_phases_without_a_prediction_are_no_division_by_zero() -> None:
    assert bill({"P0": Spent(5.0)}, {"P0": 0.0, "P1": 10.0}).left_seconds == 10.0
    assert bill({"P0": Spent(0.0)}, PREDICTED).left_seconds == 500.0
