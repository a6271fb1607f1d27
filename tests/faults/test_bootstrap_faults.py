"""kill -9 at seeded instants of a whole bootstrap: records, gates, models, result and report are those of an
undisturbed run.

Instants are places in the run's own course (tests/harness/instants.py), so that they fall into measuring the
base, drawing answers, training, step checkpoints, committing a phase and the export, on any machine. What a
kill may change is what a clock measured, and what was spent.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.instants import END, Follower, Place, choose, course_of
from harness.jobs import six_stages_value
from scaler_wizard.data.records import records_digest
from scaler_wizard.report.bootstrap_record import shown_samples
from scaler_wizard.report.page import STAGE_CHARTS
from scaler_wizard.report.record import load_record
from scaler_wizard.report.sections import sections
from scaler_wizard.report.words import headline
from scaler_wizard.store.checkpoint_files import phase_of
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

CLOCKED = {"seconds", "seconds_making", "cost", "memory", "peak_memory_bytes", "summary_seconds"}
"""What is measured by a clock or counted in one process only."""
CHECKPOINT = re.compile(r"(checkpoints/P[0-9.]+)-[0-9]+")
"""A checkpoint's number counts step checkpoints, of which a killed run has more."""
PATIENCE_SEC = 900.0
REPORT_KILLS = 2
EXPORT_PLACES = 3
"""Places at a run's end that go by faster than `LATER_SEC`."""
LATER_SEC = 0.2
"""Most seconds between a place and its kill."""


def data_of(value: Any, run: RunDir) -> Any:
    """A result without what a clock measured, the name of its directory and numbers of checkpoints."""
    if isinstance(value, dict):
        return {key: data_of(item, run) for key, item in value.items() if key not in CLOCKED}
    if isinstance(value, list):
        return [data_of(item, run) for item in value]
    return CHECKPOINT.sub(r"\1", value.replace(str(run.path), "RUN")) if isinstance(value, str) else value


def shown_of(run: RunDir) -> dict[str, Any]:
    """What the report shows, without cost, times and memory: tables, pictures, phases, numbers, samples."""
    record = load_record(run.path)
    return {
        "tables": [section for section in sections(record) if section.key != "cost"],
        "pictures": [chart for make in STAGE_CHARTS if (chart := make(record)) and chart.key != "memory"],
        "phases": [
            replace(phase, seconds=None, checkpoint=phase_of(phase.checkpoint)) for phase in record.phases
        ],
        "metrics": record.metrics, "missing": record.missing, "samples": shown_samples(record),
        "status": record.status, "headline": headline(record),
    }  # fmt: skip


def run_whole(harness: ModuleType, workspace: Workspace, value: dict[str, Any]) -> RunDir:
    """The run that nothing happens to."""
    run: RunDir = harness.create(workspace, value)
    with harness.hosted(workspace) as host:
        harness.start(host, run)
        assert harness.finish(host, run, PATIENCE_SEC)["status"] == "completed", run.exit_status()
    return run


def run_killed(
    harness: ModuleType, workspace: Workspace, value: dict[str, Any], course: dict[Place, int],
    numbers: list[int], rng: random.Random,
) -> tuple[RunDir, list[Place]]:  # fmt: skip
    """The same run, killed at places of its course; where it was killed."""
    places = list(course)
    hit: list[Place] = []
    run: RunDir = harness.create(workspace, value)
    follower = Follower(run, course)
    with harness.hosted(workspace) as host:
        for number in numbers:
            follower.begin()
            harness.start(host, run)
            pid = harness.worker_pid(run)
            ending = places[number][0] == END

            def there(number: int = number, ending: bool = ending) -> bool:
                """At the place; at the end of a phase, when its checkpoint is being written."""
                now = follower.at()
                committing = ending and now == number - 1 and any(run.checkpoints.glob(".staging-*"))
                return now >= number or committing or not host.call("alive", run=run.id)["alive"]

            harness.wait_for(there, f"{places[number]}", PATIENCE_SEC)
            late = ending or number >= len(places) - EXPORT_PLACES
            time.sleep(0.0 if late else rng.uniform(0.0, LATER_SEC))
            with suppress(ProcessLookupError):
                harness.kill(pid)
            row = harness.finish(host, run)
            if row["status"] == "completed":
                return run, hit
            assert "SIGKILL" in row["error"], row
            hit.append(places[number])
        harness.start(host, run)
        assert harness.finish(host, run, PATIENCE_SEC)["status"] == "completed", run.exit_status()
    return run, hit


def kill_everywhere(
    harness: ModuleType, folder: Path, value: dict[str, Any], kills: int, seed: int
) -> tuple[RunDir, RunDir]:
    """An undisturbed run, and one that was killed; nothing but the clock's numbers differs."""
    rng = random.Random(seed)
    whole = run_whole(harness, Workspace.create(folder / "whole"), value)
    course = course_of(harness.events(whole))
    # The end of the last phase is the end of the run: a kill might come too late.
    numbers = choose(dict(islice(course.items(), len(course) - 1)), kills, rng)
    run, hit = run_killed(harness, Workspace.create(folder / "killed"), value, course, numbers, rng)
    print(f"seed {seed}: killed {len(hit)} times in {', '.join(' '.join(place) for place in hit)}")
    assert len(hit) == kills
    assert_equal(harness, run, whole)
    assert_paid_for(run, whole, len(hit))
    return run, whole


def assert_equal(harness: ModuleType, run: RunDir, whole: RunDir) -> None:
    expected, found = whole.result(), run.result()
    assert expected is not None
    assert found is not None
    assert records_digest(run.path / "bootstrap") == records_digest(whole.path / "bootstrap")
    assert harness.digests(run.path / "bootstrap") == harness.digests(whole.path / "bootstrap")
    assert weights_of(run) == weights_of(whole)
    assert harness.digests(run.export, ".safetensors") == harness.digests(whole.export, ".safetensors")
    assert data_of(found, run) == data_of(expected, whole)
    assert data_of(harness.phase_metrics(run), run) == data_of(harness.phase_metrics(whole), whole)
    assert shown_of(run) == shown_of(whole)


def kill_reports(harness: ModuleType, run: RunDir, whole: RunDir, rng: random.Random) -> None:
    """`scaler report` killed while it reads, draws or writes: there is a whole page, or none."""

    def report(of: RunDir, life: float = PATIENCE_SEC) -> int:
        """Exit code, of a process that is killed after `life` seconds where it has not ended."""
        command = harness.command_line(Workspace.open(of.path.parent.parent), "report", of.id)
        try:
            command.communicate(timeout=life)
        except subprocess.TimeoutExpired:
            command.kill()
            command.communicate()
        return int(command.returncode)

    started = time.monotonic()
    assert report(whole) == 0
    seconds = time.monotonic() - started
    for _ in range(REPORT_KILLS):
        report(run, rng.uniform(0.3, 1.0) * seconds)
        assert not run.report.exists() or run.report.read_text("utf-8").rstrip().endswith("</html>")
    assert report(run) == 0
    page = run.report.read_text("utf-8")
    assert all(picture.svg in page for picture in shown_of(whole)["pictures"])


def weights_of(run: RunDir) -> dict[str, dict[str, str]]:
    """SHA-256 of each committed phase's files, by phase."""
    store = CheckpointStore(run)
    return {item.phase: {name: file.sha256 for name, file in item.files.items()} for item in store.chain()}


def assert_paid_for(run: RunDir, whole: RunDir, kills: int) -> None:
    """Killed work is in the totals, and the part that was killed is told apart."""
    expected, found = (whole.result() or {})["cost"], (run.result() or {})["cost"]
    assert found["attempts"] == kills + 1
    assert expected["attempts"] == 1
    assert expected["cut"]["seconds"] == 0
    assert 0 < found["cut"]["seconds"] < found["seconds"]
    # Answers that were kept are not made again, a chunk that was not finished is.
    for name in ("generated", "scored", "trained"):
        assert found[name] >= expected[name], name


def test_four_kills_change_no_record(harness: ModuleType, tmp_path: Path) -> None:
    seed = int(os.environ.get("SCALER_SEED", "21"))
    run, _ = kill_everywhere(harness, tmp_path, harness.bootstrap_value(), kills=4, seed=seed)
    assert (run.result() or {})["passed"] == [1, 2], "a run that learns nothing proves nothing"


@pytest.mark.slow
def test_twenty_kills_change_nothing_of_six_stages(harness: ModuleType, tmp_path: Path) -> None:
    seed = int(os.environ.get("SCALER_SEED", "22"))
    run, whole = kill_everywhere(harness, tmp_path, six_stages_value(), kills=20, seed=seed)
    kill_reports(harness, run, whole, random.Random(seed))
    stages = (run.result() or {})["stages"]
    assert {stage["stage"] for stage in stages if stage["steps"]} == {1, 2, 3, 4, 5, 6}
