"""kill -9 at random instants of a training: the final adapter has the bytes of the uninterrupted run's.

One run, its worker killed again and again through the real host, resumed each time. Instants are spread over
the whole training at random, to the millisecond, so that they fall into forward and backward passes, into the
copying of a snapshot and into the writer's commits; half of them take the writer along.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

STEPS_PER_KILL = 12
EVERY_SEC = 0.1


def job(harness: ModuleType, folder: Path, steps: int) -> dict[str, Any]:
    """A LoRA training of a tiny Llama, dropout included, that keeps its context."""
    model = harness.save_tiny(folder / "model", "llama")
    rows, texts = harness.write_messages(folder / "rows.jsonl"), harness.write_texts(folder / "t.txt")
    value: dict[str, Any] = harness.job_value(
        model, scaling={"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}},
        training={"max_steps": steps, "batch_tokens": 768, "micro_batch_tokens": 256},
        dataset={"source": "local", "identifier": str(rows), "text_file": str(texts)},
        evaluation={"documents": 4, "task_rows": 0}, export={"merged": False},
        safety={"gates": {"ask": "auto_approve"}, "checkpoint_every_sec": EVERY_SEC},
    )  # fmt: skip
    return value


class Watch:
    """The run's steps as they are written, each event read once."""

    def __init__(self, harness: ModuleType, run: RunDir) -> None:
        self.harness, self.run, self.seq, self.step = harness, run, 0, 0

    def reached(self, step: int) -> bool:
        for event in self.harness.events(self.run, from_seq=self.seq):
            self.seq = event.seq + 1
            if event.type == "run_started":
                self.step = 0
            elif event.type == "step":
                self.step = event.step
        return self.step >= step


def kill_everywhere(harness: ModuleType, folder: Path, kills: int, seed: int) -> None:
    print(f"seed {seed}, {kills} kills")
    rng = random.Random(seed)
    total = kills * STEPS_PER_KILL
    value = job(harness, folder, total)
    whole = harness.create(Workspace.create(folder / "whole"), value)
    workspace = Workspace.create(folder / "killed")
    run = harness.create(workspace, value)
    watch = Watch(harness, run)
    lost: list[int] = []
    # Not in the last steps, where the worker may be through before the signal.
    targets = sorted(rng.sample(range(1, total - STEPS_PER_KILL), kills))
    with harness.hosted(workspace) as host:
        for target in targets:
            harness.start(host, run)
            harness.wait_for(lambda t=target: watch.reached(t), f"step {target}")
            time.sleep(rng.uniform(0.0, 0.05))
            watch.reached(0)
            pid = harness.worker_pid(run)
            if rng.random() < 0.5:
                os.killpg(pid, signal.SIGKILL)  # the worker is a session of its own: its writer too
            else:
                harness.kill(pid)
            row = harness.finish(host, run)
            assert (row["status"], "SIGKILL" in row["error"]) == ("failed", True)
            newest = CheckpointStore(run).newest_verified().checkpoint
            assert newest is not None
            lost.append(watch.step - (newest.step if newest.kind == "step" else 0))
        harness.start(host, run)
        assert harness.finish(host, run)["status"] == "completed"
    with harness.hosted(Workspace.open(folder / "whole")) as host:
        harness.start(host, whole)
        assert harness.finish(host, whole)["status"] == "completed"
    started = harness.events(run, "run_started")
    # One that was killed before its first event has left none.
    assert started[-1].attempt == kills + 1
    continued = sum(1 for event in started[1:] if event.resumed_at != "P0-0001")
    print(f"{continued} of {kills} resumed inside the training; steps lost to a kill: {sorted(lost)}")
    assert continued >= kills / 2
    assert sorted(lost)[len(lost) // 2] < STEPS_PER_KILL
    expected = harness.digests(whole.export, ".safetensors")
    assert set(expected) == {"adapter/adapter_model.safetensors"}
    assert harness.digests(run.export, ".safetensors") == expected
    assert not [event for event in harness.events(run, "note") if "set aside" in event.text]


def test_six_kills_change_no_byte(harness: ModuleType, tmp_path: Path) -> None:
    kill_everywhere(harness, tmp_path, kills=6, seed=int(os.environ.get("SCALER_SEED", "11")))


@pytest.mark.slow
def test_fifty_kills_change_no_byte(harness: ModuleType, tmp_path: Path) -> None:
    kill_everywhere(harness, tmp_path, kills=50, seed=int(os.environ.get("SCALER_SEED", "12")))
