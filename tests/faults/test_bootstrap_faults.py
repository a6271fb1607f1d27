"""kill -9 at seeded instants of a whole bootstrap: records, gates and model are those of an undisturbed run.

Instants are drawn over the life of a worker, so that they fall into measuring the base, drawing answers,
writing records, training, merging and the export. What a kill may change is what a clock measured.
"""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaler_wizard.data.records import records_digest
from scaler_wizard.report.record import load_record
from scaler_wizard.report.sections import sections
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

CLOCKED = {"seconds", "seconds_making", "cost", "spent", "tokens", "memory", "summary_seconds"}
"""What is measured by a clock or counted in one process only."""


CHECKPOINT = re.compile(r"(checkpoints/P[0-9.]+)-[0-9]+")
"""A checkpoint's number counts step checkpoints, of which a killed run has more."""


def data_of(value: Any, run: RunDir) -> Any:
    """A result without what a clock measured, the name of its directory and numbers of checkpoints."""
    if isinstance(value, dict):
        return {key: data_of(item, run) for key, item in value.items() if key not in CLOCKED}
    if isinstance(value, list):
        return [data_of(item, run) for item in value]
    return CHECKPOINT.sub(r"\1", value.replace(str(run.path), "RUN")) if isinstance(value, str) else value


def tables_of(run: RunDir) -> list[Any]:
    """The report's own tables, without the cost."""
    return [section for section in sections(load_record(run.path)) if section.key != "cost"]


def seconds_of(harness: ModuleType, run: RunDir) -> float:
    """How long a run worked."""
    return sum(event.seconds for event in harness.events(run, "phase_done"))


def kill_everywhere(harness: ModuleType, folder: Path, kills: int, seed: int) -> None:
    print(f"seed {seed}, {kills} kills")
    rng = random.Random(seed)
    value = harness.bootstrap_value()
    whole = harness.create(Workspace.create(folder / "whole"), value)
    with harness.hosted(Workspace.open(folder / "whole")) as host:
        harness.start(host, whole)
        assert harness.finish(host, whole)["status"] == "completed"
    mean_life = seconds_of(harness, whole) / min(kills, 6)
    landed, number = 0, 0
    met: list[str] = []
    while landed < kills:
        number += 1
        workspace = Workspace.create(folder / f"killed{number}")
        run = harness.create(workspace, value)
        with harness.hosted(workspace) as host:
            completed = False
            while not completed:
                before = len(harness.events(run, "run_started"))
                harness.start(host, run)
                if landed < kills:
                    _wait_for_word(harness, run, before)
                    time.sleep(rng.uniform(0.0, 2 * mean_life))
                if landed < kills and host.call("alive", run=run.id)["alive"]:
                    harness.kill(harness.worker_pid(run))
                    landed += 1
                    met.append(_where(harness, run))
                completed = harness.finish(host, run)["status"] == "completed"
        assert_equal(harness, run, whole)
    print(f"{number} runs; killed in {', '.join(met)}")


def _wait_for_word(harness: ModuleType, run: RunDir, before: int) -> None:
    harness.wait_for(lambda: len(harness.events(run, "run_started")) > before, "the worker's first word")


def _where(harness: ModuleType, run: RunDir) -> str:
    """The phase and activity that the last event tells of."""
    last = harness.events(run)[-1]
    activity = getattr(last, "activity", last.type)
    return f"{getattr(last, 'phase', '-')} {activity}"


def assert_equal(harness: ModuleType, run: RunDir, whole: RunDir) -> None:
    expected, found = whole.result(), run.result()
    assert expected is not None
    assert found is not None
    assert expected["passed"] == [1, 2], "a run that learns nothing proves nothing"
    assert records_digest(run.path / "bootstrap") == records_digest(whole.path / "bootstrap")
    assert harness.digests(run.path / "bootstrap") == harness.digests(whole.path / "bootstrap")
    assert harness.digests(run.export, ".safetensors") == harness.digests(whole.export, ".safetensors")
    assert data_of(found, run) == data_of(expected, whole)
    assert tables_of(run) == tables_of(whole)


def test_four_kills_change_no_record(harness: ModuleType, tmp_path: Path) -> None:
    kill_everywhere(harness, tmp_path, kills=4, seed=int(os.environ.get("SCALER_SEED", "21")))


@pytest.mark.slow
def test_twenty_kills_change_no_record(harness: ModuleType, tmp_path: Path) -> None:
    kill_everywhere(harness, tmp_path, kills=20, seed=int(os.environ.get("SCALER_SEED", "22")))
