"""What one of two gloo ranks does for test_distributed.py: python two_ranks.py OUT [scenario ...]."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import test_loop
from safetensors.torch import save_file

from scaler_wizard.errors import ProcessGroupError
from scaler_wizard.training.distributed import Group, checksum, connected
from scaler_wizard.training.launch import read_launch
from scaler_wizard.training.loop import StepResult, new_state, train
from scaler_wizard.training.sharded import load_shared_state, save_shared_state, shard, whole_weights

SETTINGS = dataclasses.replace(test_loop.SETTINGS, total_steps=4)
MICRO_BATCH_TOKENS = 50


def plain_model(dtype: torch.dtype) -> Any:
    model = test_loop.lora_model(dtype=dtype).unload()
    return model.requires_grad_(True)


def course(results: list[StepResult]) -> list[list[float]]:
    return [[item.loss, item.grad_norm, item.metrics["correct"]] for item in results]


def adapters(group: Group, dtype: torch.dtype, *, sharded: bool, checkpointing: bool = False) -> Any:
    model = test_loop.lora_model(dtype=dtype)
    if sharded:
        shard(model, group)
    settings = dataclasses.replace(SETTINGS, activation_checkpointing=checkpointing)
    state = new_state(model, settings)
    group.check_same("weights", checksum(state))
    batches = test_loop.batches(MICRO_BATCH_TOKENS)
    results = list(train(model, batches, test_loop.SFT, settings, state=state, ranks=group))
    return results, whole_weights(state)


def full(group: Group, dtype: torch.dtype, out: Path) -> Any:
    """All weights sharded, through a saved state in the middle and a fresh model after it."""
    results: list[StepResult] = []
    for first in (True, False):
        model = shard(plain_model(dtype), group)
        state = new_state(model, SETTINGS)
        if not first:
            load_shared_state(group, state, out)
        batches = test_loop.batches(MICRO_BATCH_TOKENS)
        for result in train(model, batches, test_loop.SFT, SETTINGS, state=state, ranks=group):
            results.append(result)
            if first and result.step == 2:
                save_shared_state(group, state, out)
                break
    return results, whole_weights(state)


def divided(group: Group) -> Any:
    """One rank's guard says no: both stop, and neither applies the step."""
    model = test_loop.lora_model()
    state = new_state(model, SETTINGS)

    def guard(result: StepResult) -> bool:
        return not (group.rank == 1 and result.step == 3)

    results = list(
        train(model, test_loop.batches(), test_loop.SFT, SETTINGS, guard=guard, state=state, ranks=group)
    )
    return results, whole_weights(state)


def main() -> None:
    torch.set_num_threads(1)
    out, scenarios = Path(sys.argv[1]), sys.argv[2:]
    launch = read_launch(os.environ)
    assert launch is not None
    if "silent" in scenarios or "dead" in scenarios:
        lose_a_rank(launch, out, silent="silent" in scenarios)
        return
    with connected(launch, timeout_sec=60) as group:
        runs = {
            "replicated": lambda: adapters(group, torch.float64, sharded=False),
            "float32": lambda: adapters(group, torch.float32, sharded=False),
            "sharded": lambda: adapters(group, torch.float64, sharded=True),
            "checkpointed": lambda: adapters(group, torch.float64, sharded=True, checkpointing=True),
            "full": lambda: full(group, torch.float64, out),
            "divided": lambda: divided(group),
        }
        for name, run in runs.items():
            results, weights = run()
            save_file(weights, out / f"{name}-{group.rank}.safetensors")
            (out / f"{name}-{group.rank}.json").write_text(json.dumps(course(results)))
        try:
            group.check_same("rows", [1.0, float(group.rank)])
        except ProcessGroupError as error:
            (out / f"different-{group.rank}.txt").write_text(str(error))


def lose_a_rank(launch: Any, out: Path, *, silent: bool) -> None:
    """Rank 1 stops after one step, by death or by silence; rank 0 writes down what it is told."""
    with connected(launch, timeout_sec=3) as group:
        model = test_loop.lora_model()
        try:
            for result in train(model, test_loop.batches(), test_loop.SFT, SETTINGS, ranks=group):
                if group.rank == 1 and result.step == 1:
                    time.sleep(15 if silent else 0)
                    os._exit(1)
        except ProcessGroupError as error:
            (out / "lost.txt").write_text(str(error))
            os._exit(0)


if __name__ == "__main__":
    main()
