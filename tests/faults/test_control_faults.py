"""What a person asks at bad moments, of real workers: during a save, twice, of a run that is being trained.

And one damage that only a real resume shows in full: a flipped bit in the newest checkpoint. In every case
the adapter has, in the end, the bytes of a run that nobody disturbed.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaler_wizard.errors import WrongStateError
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

SEED = int(os.environ.get("SCALER_FAULT_SEED", random.SystemRandom().randrange(1 << 32)))


def steps(harness: ModuleType, run: RunDir) -> list[int]:
    return [event.step for event in harness.events(run, "step")]


def ask(host: Any, run: RunDir, action: str, **fields: Any) -> None:
    host.call("command", run=run.id, action=action, by="a test", reason="a bad moment", **fields)


def insist(host: Any, run: RunDir, action: str) -> int:
    """Ask again and again until the worker has ended, so also while it saves; how often."""
    asked = 0
    while host.call("alive", run=run.id)["alive"]:
        # Between its last report and its end there is nobody to ask: that is said, and changes nothing.
        with contextlib.suppress(WrongStateError):
            ask(host, run, action)
            asked += 1
        time.sleep(0.005)
    return asked


def flip_a_bit(store: CheckpointStore) -> str:
    """In the largest file of the newest checkpoint; its name."""
    rng = random.Random(SEED)
    newest: str = store.head().steps[0]
    weights = (store.directory / newest).glob("**/*.safetensors")
    victim = max(weights, key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    victim.write_bytes(data)
    return newest


def test_pause_and_stop_again_and_again_while_it_is_saving(
    harness: ModuleType, workspace: Workspace, material: tuple[ContinualConfig, Path],
    undisturbed: dict[str, str], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """And, while it is stopped, a bit of its newest checkpoint flips."""
    with capsys.disabled():
        print(f"\n[faults] a flipped bit (seed {SEED})", end="")
    run = harness.drop(workspace, *material)
    with harness.hosted(workspace) as host:
        harness.start(host, run)
        harness.wait_for(lambda: len(steps(harness, run)) >= 3, "three steps")
        assert insist(host, run, "pause") > 1
        assert harness.finish(host, run)["status"] == "paused"
        paused = steps(harness, run)
        assert paused[-1] < harness.LESSON_STEPS
        store = CheckpointStore(run)
        head = store.head()
        assert head.step is not None
        assert store.verify(head.step).step == paused[-1], "saved at the step where it is"

        # What is left from yesterday: none of those pauses may end the attempt of today.
        harness.start(host, run)
        harness.wait_for(lambda: len(steps(harness, run)) > len(paused) + 3, "more steps")
        resumed = steps(harness, run)[len(paused) :]
        assert resumed[0] == paused[-1] + 1
        assert insist(host, run, "abort") > 1
        assert harness.finish(host, run)["status"] == "stopped"

        damaged = flip_a_bit(store)
        harness.start(host, run)
        assert harness.finish(host, run)["status"] == "completed"
    assert (store.directory / ".quarantine" / damaged).is_dir()
    assert (store.directory / ".quarantine" / f"{damaged}.reason.json").is_file()
    assert any(damaged in event.text for event in harness.events(run, "note")), "the person is told"
    assert harness.digests(run.export / "adapter", ".safetensors") == undisturbed


def test_rolled_back_while_it_is_training(
    harness: ModuleType, workspace: Workspace, material: tuple[ContinualConfig, Path],
    undisturbed: dict[str, str],
) -> None:  # fmt: skip
    """The worker is stopped first, then the head is flipped; what it had learned is learned again."""
    run = harness.drop(workspace, *material)
    with harness.hosted(workspace) as host:
        harness.start(host, run)
        harness.wait_for(lambda: len(steps(harness, run)) >= 4, "four steps")
        for _ in range(2):
            ask(host, run, "rollback", target_phase="P0")
        row = harness.finish(host, run)
        assert row["status"] == "paused", row
        before = steps(harness, run)
        assert before[-1] < harness.LESSON_STEPS
        head = CheckpointStore(run).head()
        assert (head.step, [name.partition("-")[0] for name in head.chain]) == (None, ["P0"])
        harness.start(host, run)
        assert harness.finish(host, run)["status"] == "completed"
    assert steps(harness, run)[len(before) :] == list(range(1, harness.LESSON_STEPS + 1)), (
        "from the beginning of P1"
    )
    assert harness.digests(run.export / "adapter", ".safetensors") == undisturbed
