"""Long rows within a bounded memory: scoring, generation and training at 32,768 tokens on one CPU thread.

    python benchmarks/long_inputs.py [--json] [--tokens N] [--only NAME ...]

A random Llama of 1.9M parameters in fp32, each measurement in a fresh process by our own code: scoring of
every token (`inference.scoring`, in chunks through the KV cache), 16 new tokens after a prompt
(`inference.generate`), one LoRA step on one row (`training.loop`) without and with activation checkpointing.
Peaks are the process's own VmHWM, libraries included. Each is also taken at a quarter of the length, which
gives `growth`: what the peak above the libraries was multiplied by, 4 for memory that grows with the length,
16 with its square; null where the quarter hardly shows above the libraries.

The last line of `--json` holds, besides these, what the memory model predicts and whether every peak stays
under `bound_bytes`. At 32,768 tokens this takes five to ten minutes: time does grow with the square.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory_model import peak_rss, write_header_only
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.memory import estimate_memory

CONFIG = {"hidden": 128, "layers": 4, "mlp": 384, "heads": 2, "kv": 1, "vocab": 4096}
RANK = 8
NEW_TOKENS = 16
# What the attention scores of one head of one layer would take in fp32 at 32,768 tokens, were they ever kept.
BOUND_BYTES = 4 << 30
# Two runs of the same thing differ by less; a quarter's peak must lie further above the libraries.
NOISE_BYTES = 16 << 20
MEASURES = ("runtime", "scoring", "generation", "training", "training_checkpointed")


def build_model(tokens: int) -> Any:
    """The random Llama, with room for positions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=CONFIG["hidden"], num_hidden_layers=CONFIG["layers"],
            intermediate_size=CONFIG["mlp"], num_attention_heads=CONFIG["heads"],
            num_key_value_heads=CONFIG["kv"], vocab_size=CONFIG["vocab"],
            max_position_embeddings=2 * tokens, attn_implementation="sdpa", tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip


def train_step(model: Any, tokens: int, *, checkpointing: bool) -> float:
    """One LoRA step on one row; returns its loss."""
    import numpy as np

    from scaler_wizard.data.batches import Batches
    from scaler_wizard.data.token_rows import TokenRow
    from scaler_wizard.models.adapters import attach_lora
    from scaler_wizard.training.forward import make_objective
    from scaler_wizard.training.loop import TrainSettings, train

    adapted = attach_lora(model, rank=RANK, alpha=2 * RANK)
    ids = np.random.RandomState(0).randint(0, CONFIG["vocab"], tokens).astype(np.int32)
    row = TokenRow(0, ids, np.ones(tokens, dtype=np.bool_))
    batches = Batches([row], context=tokens, batch_tokens=tokens, micro_batch_tokens=tokens, seed=0)
    settings = TrainSettings(total_steps=1, learning_rate=1e-4, activation_checkpointing=checkpointing)
    (result,) = train(adapted, batches, make_objective("sft"), settings)
    return result.loss


def child(name: str, tokens: int) -> None:
    """Take one measurement and print {peak_bytes, seconds, value} as JSON."""
    import torch

    from scaler_wizard.inference.generate import generate
    from scaler_wizard.inference.requests import Request
    from scaler_wizard.inference.scoring import score_targets

    torch.set_num_threads(1)
    model = build_model(tokens)
    ids = torch.randint(0, CONFIG["vocab"], (tokens,)).tolist()
    value = 0.0
    started = time.perf_counter()
    if name == "scoring":
        value = -sum(score_targets(model, [ids], [1])[0]) / (tokens - 1)
    elif name == "generation":
        value = len(generate(model, [Request(tuple(ids), NEW_TOKENS)])[0].tokens)
    elif name.startswith("training"):
        value = train_step(model, tokens, checkpointing=name.endswith("checkpointed"))
    else:
        train_step(model, 16, checkpointing=False)
    print(json.dumps({"peak_bytes": peak_rss(), "seconds": time.perf_counter() - started, "value": value}))


def measure(name: str, tokens: int) -> dict[str, float]:
    """One measurement in a fresh process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--child", name, "--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} at {tokens:,} tokens failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"{name} at {tokens:,} tokens: {result['peak_bytes'] / 1e6:,.0f} MB, {result['seconds']:.1f} s",
        file=sys.stderr,
    )
    return result


def predictions(tokens: int) -> dict[str, int]:
    """The memory model's totals in bytes: of an evaluation alone and of both trainings."""
    with tempfile.TemporaryDirectory() as folder:
        write_header_only(Path(folder), CONFIG)
        facts = read_facts(folder)
    totals = {}
    for name, micro, checkpointing in (
        ("scoring", 0, False),
        ("training", tokens, False),
        ("training_checkpointed", tokens, True),
    ):
        totals[name] = estimate_memory(
            facts, strategy="lora", rank=RANK, target_modules=None, precision="float32",
            micro_batch_tokens=micro, context=tokens, activation_checkpointing=checkpointing,
            device_kind="cpu",
        ).total  # fmt: skip
    return totals


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--only", nargs="+", choices=MEASURES[1:], default=list(MEASURES[1:]))
    parser.add_argument("--child", choices=MEASURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.tokens)
        return
    tokens = arguments.tokens
    runtime = measure("runtime", 64)["peak_bytes"]
    predicted = predictions(tokens)
    result: dict[str, Any] = {"tokens": tokens, "runtime_bytes": int(runtime), "bound_bytes": BOUND_BYTES}
    for name in arguments.only:
        whole, quarter = measure(name, tokens), measure(name, tokens // 4)
        result[f"{name}_peak_bytes"] = int(whole["peak_bytes"])
        result[f"{name}_seconds"] = round(whole["seconds"], 1)
        above = quarter["peak_bytes"] - runtime
        growth = round((whole["peak_bytes"] - runtime) / above, 2) if above > NOISE_BYTES else None
        result[f"{name}_growth"] = growth
        if name in predicted:
            result[f"{name}_predicted_bytes"] = predicted[name]
    peaks = [result[f"{name}_peak_bytes"] for name in arguments.only]
    result["within_bound"] = max(peaks) <= BOUND_BYTES
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
