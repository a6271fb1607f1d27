"""Predicted against measured peak memory of a LoRA step on this machine's CPU.

    python benchmarks/memory_model.py [--json] [--only NAME]

Each configuration runs in a fresh process: a random Llama, two steps of our own training loop with every
position a target, then the process's own VmHWM. The last line of `--json` is {config, predicted,
measured, error} of the worst case and `all` of them. `runtime` rows: the libraries by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.memory import estimate_memory

SMALL = {"hidden": 768, "layers": 12, "mlp": 2048, "heads": 12, "kv": 4, "vocab": 32000, "rank": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-fp32": {"hidden": 64, "layers": 4, "mlp": 256, "heads": 4, "kv": 2, "vocab": 512, "rank": 8,
                  "precision": "float32", "tokens": 1024},
    "20m-fp32": {"hidden": 384, "layers": 8, "mlp": 1024, "heads": 6, "kv": 2, "vocab": 8192, "rank": 16,
                 "precision": "float32", "tokens": 2048},
    "110m-bf16": SMALL | {"precision": "bfloat16", "tokens": 1024},
    "110m-fp32": SMALL | {"precision": "float32", "tokens": 1024},
    "110m-bf16-dropout": SMALL | {"precision": "bfloat16", "tokens": 1024, "dropout": 0.05},
    "110m-bf16-ckpt": SMALL | {"precision": "bfloat16", "tokens": 2048, "checkpointing": True},
    "110m-fp32-ckpt": SMALL | {"precision": "float32", "tokens": 2048, "checkpointing": True},
}  # fmt: skip


def peak_rss() -> int:
    """This process's highest resident size so far, in bytes."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def build_model(config: dict[str, Any]) -> Any:
    """A random Llama in the configuration's precision, built without a second copy of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(getattr(torch, config["precision"]))
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config["hidden"], num_hidden_layers=config["layers"], intermediate_size=config["mlp"],
            num_attention_heads=config["heads"], num_key_value_heads=config["kv"], vocab_size=config["vocab"],
            max_position_embeddings=8192, attn_implementation="sdpa",
        )
    )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    return model


class OneMicroBatch:
    """Steps of one packed micro-batch in which every position is a target, the worst case for logits."""

    def __init__(self, tokens: int, vocabulary: int, row: int) -> None:
        self.tokens, self.vocabulary, self.row = tokens, vocabulary, row

    def step(self, index: int) -> Any:
        """Rows of `row` tokens, other ones each time."""
        import numpy as np

        from scaler_wizard.data.batches import Step, collate
        from scaler_wizard.data.token_rows import TokenRow

        rng = np.random.RandomState(index)
        rows = [
            TokenRow(
                number, rng.randint(0, self.vocabulary, self.row).astype(np.int32), np.ones(self.row, bool)
            )
            for number in range(self.tokens // self.row)
        ]
        return Step((collate(rows),))


def child(name: str) -> None:
    """Train two steps of one configuration and print {measured, runtime, seconds} as JSON."""
    import torch

    import scaler_wizard.recipes.worker  # noqa: F401  (what a worker imports is its runtime)
    from scaler_wizard.models.adapters import attach_lora
    from scaler_wizard.training.forward import make_objective
    from scaler_wizard.training.loop import TrainSettings, train

    torch.set_num_threads(1)
    imported = peak_rss()
    if name == "runtime":
        print(json.dumps({"measured": imported}))
        return
    config = CONFIGS[name]
    model = attach_lora(
        build_model(config), rank=config["rank"], alpha=32.0, dropout=config.get("dropout", 0.0), seed=0
    )
    settings = TrainSettings(
        total_steps=2, learning_rate=1e-4, activation_checkpointing=config.get("checkpointing", False)
    )
    batches: Any = OneMicroBatch(config["tokens"], config["vocab"], config.get("row", 512))
    seconds = [result.seconds for result in train(model, batches, make_objective("sft"), settings)]
    print(json.dumps({"measured": peak_rss(), "runtime": imported, "seconds": min(seconds)}))


def predicted(name: str) -> int:
    """The memory model's peak of a training step of one configuration, from a header-only directory."""
    config = CONFIGS[name]
    with tempfile.TemporaryDirectory() as folder:
        write_header_only(Path(folder), config)
        facts = read_facts(folder)
    estimate = estimate_memory(
        facts, strategy="lora", rank=config["rank"], target_modules=None,
        precision=config["precision"],
        micro_batch_tokens=config["tokens"], context=256,
        activation_checkpointing=config.get("checkpointing", False), device_kind="cpu",
        dropout=config.get("dropout", 0.0),
    )  # fmt: skip
    # The child trains and never evaluates.
    lines = [line for line in estimate.lines if line.when != "evaluation"]
    for line in lines:
        print(f"    {line.name:12} {line.bytes / 1e6:9.1f} MB  {line.when:10} {line.explanation}")
    return sum(line.bytes for line in lines)


def write_header_only(folder: Path, config: dict[str, Any]) -> None:
    """config.json and a sparse safetensors file of the right size: planning reads nothing else."""
    hidden, mlp, vocab = int(config["hidden"]), int(config["mlp"]), int(config["vocab"])
    kv = hidden // int(config["heads"]) * int(config["kv"])
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for index in range(int(config["layers"])):
        base = f"model.layers.{index}."
        for part, (rows, columns) in {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp,
            hidden),
            "mlp.down_proj": (hidden, mlp),
        }.items():  # fmt: skip
            shapes[f"{base}{part}.weight"] = (rows, columns)
        shapes[f"{base}input_layernorm.weight"] = shapes[f"{base}post_attention_layernorm.weight"] = (hidden,)
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 4 * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "num_hidden_layers": config["layers"], "num_attention_heads": config["heads"],
        "num_key_value_heads": config["kv"], "intermediate_size": mlp, "vocab_size": vocab,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
    }))  # fmt: skip


def measure(name: str) -> dict[str, float]:
    """Run one configuration in a fresh process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", name],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Compare every configuration and print the table."""
    parser = argparse.ArgumentParser(description="predicted against measured peak memory")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=sorted(CONFIGS))
    parser.add_argument("--child", choices=[*CONFIGS, "runtime"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    print(f"runtime alone: {measure('runtime')['measured'] / 1e6:.0f} MB")
    rows = []
    for name in [arguments.only] if arguments.only else list(CONFIGS):
        print(name)
        total, result = predicted(name), measure(name)
        error = total / result["measured"] - 1
        rows.append(
            {
                "config": name,
                "predicted": total,
                "measured": int(result["measured"]),
                "error": round(error, 4),
            }
        )
        print(
            f"  predicted {total / 1e6:,.0f} MB, measured {result['measured'] / 1e6:,.0f} MB, {error:+.1%}; "
            f"runtime {result['runtime'] / 1e6:.0f} MB, step {result['seconds']:.2f} s"
        )
    if arguments.json:
        print(json.dumps({**max(rows, key=lambda row: abs(row["error"])), "all": rows}))


if __name__ == "__main__":
    main()
