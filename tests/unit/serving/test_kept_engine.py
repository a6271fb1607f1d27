"""An engine that dies under its work: when it is started again, and when it is given up."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from scaler_wizard.errors import WorkerDiedError
from scaler_wizard.serving.kept_engine import MOST_RESTARTS, WITHIN_SEC, KeptEngine, may_restart

QUESTION = "Sort: b a"


def test_a_fourth_death_within_ten_minutes_is_the_last() -> None:
    assert may_restart([0.0], 0.0)
    assert may_restart([0.0, 1.0, 2.0], 2.0)
    assert not may_restart([0.0, 1.0, 2.0, 3.0], 3.0)
    assert may_restart([0.0, 1.0, 2.0, WITHIN_SEC], WITHIN_SEC)
    assert len([n for n in range(1, 9) if may_restart([float(n)] * n, n)]) == MOST_RESTARTS


def test_one_that_dies_too_often_is_given_up_and_says_why(bundle_folder: Path) -> None:
    told: list[bool] = []
    with KeptEngine(bundle_folder, threads=1, rule=lambda deaths, now: len(deaths) < 1) as engine:
        engine.when_given_up(lambda: told.append(True))
        assert engine.submit(QUESTION).result(60).answer is not None
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        until = time.monotonic() + 60
        while not told and time.monotonic() < until:
            time.sleep(0.01)
        assert told
        assert not engine.ready
        with pytest.raises(WorkerDiedError, match="was lost 1 times; the last time: the engine process has"):
            engine.submit(QUESTION)
