"""A file's training that is paused, resumed and killed gives the bytes of one that was not."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

STEPS = 30


def steps(harness: ModuleType, run: RunDir) -> list[int]:
    """Steps in the order they were reported."""
    return [event.step for event in harness.events(run, "step")]


def test_paused_at_a_batch_and_killed_after_it(
    harness: ModuleType, workspace: Workspace, tmp_path: Path
) -> None:
    config = harness.continual_config(tmp_path, training={"max_steps": STEPS, "batch_tokens": 512})
    path = harness.write_tasks(tmp_path / "a.jsonl", (1, 2), rows=1200)
    whole = harness.drop(Workspace.create(tmp_path / "whole"), config, path)
    assert harness.attempt(whole) == 0, whole.exit_status()

    run = harness.drop(workspace, config, path)
    with harness.hosted(workspace) as host:
        harness.start(host, run)
        harness.wait_for(lambda: len(steps(harness, run)) >= 4, "four steps")
        host.call("command", run=run.id, action="pause", by="a test", decision_id="1")
        assert harness.finish(host, run)["status"] == "paused"
        paused = steps(harness, run)
        assert paused[-1] < STEPS
        # The next attempt begins with the very next batch, and is killed some batches later.
        harness.start(host, run)
        harness.wait_for(lambda: len(steps(harness, run)) >= len(paused) + 3, "three more steps")
        harness.kill(harness.worker_pid(run))
        assert harness.finish(host, run)["status"] == "failed"
        resumed = steps(harness, run)[len(paused) :]
        assert resumed[0] == paused[-1] + 1
        harness.start(host, run)
        assert harness.finish(host, run)["status"] == "completed"
    assert steps(harness, run)[-1] == STEPS
    assert harness.digests(run.export / "adapter", ".safetensors") == harness.digests(
        whole.export / "adapter", ".safetensors"
    )
    results = [found.result() for found in (run, whole)]
    assert results[0]["version"]["metrics"]["accuracy"] == results[1]["version"]["metrics"]["accuracy"]
