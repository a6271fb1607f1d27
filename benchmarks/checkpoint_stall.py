"""How long step checkpoints make a training stand still, and what they cost while they are written.

    python benchmarks/checkpoint_stall.py [--json] [--steps N] [--every SEC] [--strategy lora|full] [--small]

A random Llama of 115M parameters in bfloat16 (`--small`: 6M) trains in one process on one thread, as a
worker does it: real loop, real snapshot, real writer process, real commits with every fsync. Checkpoints are
taken as often as `--every` says; a run with the default interval of 60 s stalls as much less often.

Keys: stall_fraction (time in which the loop waited for a snapshot or looked for an answer, over training
time), snapshot_seconds and write_seconds (medians), bytes of a checkpoint, checkpoints written, step_seconds
with the writer idle and while it writes (medians), synchronous_seconds (the same files written by the loop
itself).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scaler_wizard.data.batches import Batches
from scaler_wizard.data.token_rows import TokenRow, TokenRows
from scaler_wizard.models.adapter_io import adapter_files
from scaler_wizard.models.adapters import attach, trainable_parameters
from scaler_wizard.models.tensor_files import Files, TensorFile, write_files
from scaler_wizard.runs.step_checkpoints import StepCheckpoint, StepCheckpoints
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.training.forward import make_objective
from scaler_wizard.training.loop import TrainSettings, new_state, train
from scaler_wizard.training.state import state_files

LARGE = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 2048, "num_attention_heads": 12,
         "num_key_value_heads": 4, "vocab_size": 32000}  # fmt: skip
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024, "num_attention_heads": 4,
         "num_key_value_heads": 4, "vocab_size": 4096}  # fmt: skip


def build(shape: dict[str, int], strategy: str) -> Any:
    """A random model in bfloat16 with what is trained attached."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=2048, **shape))
    torch.set_default_dtype(torch.float32)
    return attach(model, strategy, rank=16, alpha=32, dropout=0.0, target_modules="all-linear", seed=0)  # type: ignore[arg-type]


def measure(steps: int, every: float, strategy: str, shape: dict[str, int], folder: Path) -> dict[str, Any]:
    """Train, take checkpoints, and count the time that was lost to them."""
    model = build(shape, strategy)
    rng = np.random.RandomState(0)
    rows = TokenRows.of(
        TokenRow(n, rng.randint(0, shape["vocab_size"], 256).astype(np.int32), np.ones(256, bool))
        for n in range(64)
    )
    batches = Batches(rows, context=256, batch_tokens=1024, micro_batch_tokens=1024, seed=0)
    settings = TrainSettings(total_steps=steps, learning_rate=1e-4)
    state = new_state(model, settings)
    run = RunDir.create(folder / "run", "stall")
    checkpoints = StepCheckpoints(run, 1, every)

    def capture() -> Files:
        adapter = (
            {"trained.safetensors": TensorFile(trainable_parameters(model))}
            if strategy == "full"
            else adapter_files(model)
        )
        return {**adapter, **state_files(state)}

    written: list[StepCheckpoint] = []
    pace: dict[bool, list[float]] = {True: [], False: []}
    stalled, begun, last = 0.0, 0.0, 0.0
    for result in train(model, batches, make_objective("sft"), settings, state=state):
        now = time.perf_counter()
        if result.step == 1:  # the first allocates moments; the clock starts behind it
            begun = now
            checkpoints.restart_clock()
        else:
            pace[checkpoints.busy].append(now - last)
        done = checkpoints.poll()
        if done is not None:
            written.append(done)
        if checkpoints.due() and result.step > 1:
            checkpoints.begin("P1", result.step, capture)
        last = time.perf_counter()
        stalled += last - now
    seconds = time.perf_counter() - begun
    done = checkpoints.wait()
    written += [done] if done is not None else []
    checkpoints.close()
    started = time.perf_counter()
    store = CheckpointStore(run)
    with store.stage("P1") as staging:
        write_files(capture(), staging.path)
        staging.commit(step=steps, kind="step")
    synchronous = time.perf_counter() - started
    return {
        "stall_fraction": stalled / seconds,
        "snapshot_seconds": statistics.median(item.snapshot_seconds for item in written),
        "first_snapshot_seconds": written[0].snapshot_seconds,
        "write_seconds": statistics.median(item.write_seconds for item in written),
        "synchronous_seconds": synchronous,
        "bytes": written[-1].bytes,
        "checkpoints": len(written),
        "steps": steps,
        "train_seconds": seconds,
        "step_seconds_idle": statistics.median(pace[False]) if pace[False] else None,
        "step_seconds_writing": statistics.median(pace[True]) if pace[True] else None,
        "strategy": strategy,
        "parameters": sum(item.numel() for item in model.parameters()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=float, default=10.0)
    parser.add_argument("--strategy", choices=["lora", "full"], default="lora")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = SMALL if options.small else LARGE
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.steps, options.every, options.strategy, shape, Path(folder))
    if options.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key:24} {value:.5g}" if isinstance(value, float) else f"{key:24} {value}")


if __name__ == "__main__":
    main()
