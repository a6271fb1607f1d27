"""The time that is left, under a clock that tests hold."""

from __future__ import annotations

import random

from scaler_wizard.runs.eta import StepClock


def etas(seconds: list[float]) -> list[float]:
    """The ETA after every step, for steps that take so long."""
    now = [0.0]
    clock = StepClock(lambda: now[0])
    found = []
    for number, took in enumerate(seconds, start=1):
        now[0] += took
        found.append(clock.eta(len(seconds) - number))
    return found


def test_a_slow_first_step_is_left_out() -> None:
    found = etas([10.0] + [1.0] * 99)
    assert found[0] == 990.0  # nothing better is known yet
    assert found[1] == 98.0
    assert found[-1] == 0.0


def test_within_a_fifth_once_a_twentieth_is_done() -> None:
    rng = random.Random(5)
    seconds = [4.0] + [0.2 * rng.uniform(0.7, 1.3) + (0.4 if n % 20 == 0 else 0.0) for n in range(1, 400)]
    found = etas(seconds)
    for done in range(20, 390):
        left = sum(seconds[done:])
        assert abs(found[done - 1] - left) < 0.2 * left


def test_a_machine_that_slows_down_is_followed() -> None:
    found = etas([1.0] * 200 + [3.0] * 200)
    assert found[199] == 200.0
    assert found[199 + 40] == 3.0 * 160
