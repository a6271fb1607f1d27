"""The running total and the forecast that every gate shows."""

from __future__ import annotations

import json

import pytest

from scaler_wizard.planning.spend import Metered, Spent, bill

PREDICTED = {"P0": 100.0, "P1": 200.0, "P2": 300.0}


def undisturbed(**phases: Spent) -> Metered:
    """One attempt, and no time between its phases."""
    return Metered(sum(phases.values(), Spent()), Spent(), phases, 1)


def test_before_anything_is_done_the_plan_is_the_forecast() -> None:
    found = bill(undisturbed(), (), PREDICTED, 3.6)
    assert (found.spent.seconds, found.left_seconds) == (0.0, 600.0)
    assert found.total_money == pytest.approx(0.6)


def test_the_forecast_is_corrected_by_what_was_measured() -> None:
    """Half as fast as planned so far: what is left will take twice as long as well."""
    found = bill(undisturbed(P0=Spent(200.0, generated=1000)), ["P0"], PREDICTED, 7.2)
    assert found.left_seconds == 1000.0
    assert found.total_seconds == 1200.0
    assert found.money == pytest.approx(0.4)
    assert found.total_money == pytest.approx(2.4)
    assert found.words() == "3 min so far, about 20 min in all; 0.40 so far, about 2.40 in all"


def test_a_second_attempt_at_a_gate_is_paid_for_and_corrects_nothing() -> None:
    done = {"P0": Spent(100.0), "P1": Spent(200.0), "P1.2": Spent(500.0)}
    found = bill(undisturbed(**done), done, PREDICTED)
    assert (found.spent.seconds, found.left_seconds) == (800.0, 300.0)
    assert found.money is None
    assert "13 min so far" in found.words()


def test_what_was_cut_short_is_in_total_and_forecast_and_leaves_its_phase_to_do() -> None:
    """P1 was killed after 50 s: they are paid, and all of P1 is still ahead."""
    run = Metered(Spent(150.0), Spent(50.0), {"P0": Spent(100.0)}, 2)
    found = bill(run, ["P0"], PREDICTED, 3600.0)
    assert (found.spent.seconds, found.left_seconds, found.total_seconds) == (150.0, 500.0, 650.0)
    assert found.money == pytest.approx(150.0)
    assert found.as_dict()["cut"]["seconds"] == 50.0
    assert found.as_dict()["attempts"] == 2


def test_a_phase_whose_end_was_not_heard_corrects_nothing_and_is_not_left() -> None:
    """Killed between its commit and its event."""
    run = Metered(Spent(900.0), Spent(800.0), {"P0": Spent(100.0)}, 2)
    assert bill(run, ["P0", "P1"], PREDICTED).left_seconds == 300.0


def test_tokens_add_up_and_the_record_is_json() -> None:
    done = {"P0": Spent(1.0, 10, 20, 0), "P1": Spent(2.0, 1, 2, 3)}
    found = json.loads(json.dumps(bill(undisturbed(**done), done, PREDICTED).as_dict()))
    assert (found["generated"], found["scored"], found["trained"]) == (11, 22, 3)


def test_phases_without_a_prediction_are_no_division_by_zero() -> None:
    assert bill(undisturbed(P0=Spent(5.0)), ["P0"], {"P0": 0.0, "P1": 10.0}).left_seconds == 10.0
    assert bill(undisturbed(P0=Spent(0.0)), ["P0"], PREDICTED).left_seconds == 500.0
