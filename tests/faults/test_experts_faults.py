"""kill -9 in every phase of an experts run: what goes on afterwards ends in the bytes of a run left alone."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.jobs import experts_value, screens_value
from scaler_wizard.store.workspace import Workspace

PHASES = ("P0", "P1", "P2", "P3", "P4", "P5")
SAFETY = {"checkpoint_every_sec": 0.05}


@pytest.fixture(params=["texts", "screens"])
def value(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "texts":
        return experts_value(safety=SAFETY)
    return screens_value(tmp_path / "screens", safety=SAFETY)


@pytest.mark.slow
def test_killed_in_every_phase_it_ends_in_the_same_bytes(
    harness: ModuleType, workspace: Workspace, value: dict[str, Any], tmp_path: Path
) -> None:
    whole = harness.create(Workspace.create(tmp_path / "whole"), value)
    assert harness.attempt(whole) == 0, whole.exit_status()
    run = harness.create(workspace, value)

    def begun(phase: str) -> bool:
        if phase == "P1":  # in the middle of a training, not at its door
            return len(harness.events(run, "step")) > 5
        return any(event.phase == phase for event in harness.events(run, "phase_started"))

    with harness.hosted(workspace) as host:
        for phase in PHASES:
            harness.start(host, run)
            harness.wait_for(lambda phase=phase: begun(phase), phase)
            harness.kill(harness.worker_pid(run))
            if harness.finish(host, run)["status"] == "completed":
                break
        else:
            harness.start(host, run)
            assert harness.finish(host, run)["status"] == "completed"
    results = [found.result()["experts"] for found in (run, whole)]
    for key in ("end_to_end", "routing", "labels", "work"):
        assert results[0][key] == results[1][key], key
    assert harness.digests(run.export / "experts", ".safetensors") == harness.digests(
        whole.export / "experts", ".safetensors"
    )
    assert len(list((workspace.root / "datasets").iterdir())) == 1
