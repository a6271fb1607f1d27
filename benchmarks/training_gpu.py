"""LoRA training of a 1B Llama on one GPU: ours, TRL with Liger, and Unsloth where it is installed.

    python benchmarks/training_gpu.py [--json] [--steps N] [--repeats N] [--compile]

Llama-3.2-1B's shapes with random weights in bf16, built on the card; the same 512 rows of 20 to 1,000 random
tokens, all of them targets; LoRA of rank 16 on all linear layers; 32 rows an optimiser step. Each way runs in
a process of its own, in turns. Printed: real (not padded) tokens per second after two warm-up steps, peak
memory, last loss, and model FLOP/s over the card's own measured bf16 matmul rate (`utilisation`; 4 FLOPs a
parameter and token, because a frozen weight has no gradient, plus attention).

Where there is no CUDA device it says so in one line, {"skipped": reason}, and ends with 0. It has not been
run on a GPU yet: none was at hand when it was written.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

CONFIG = {
    "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip
N_ROWS, ROWS_PER_STEP, RANK, WARMUP = 512, 32, 16, 2
CONTEXT, MICRO_BATCH_TOKENS, PADDED_ROWS = 1024, 16_384, 8


def rows() -> list[np.ndarray[Any, Any]]:
    """Token ids of each row."""
    rng = np.random.RandomState(0)
    lengths = rng.randint(20, 1001, N_ROWS)
    return [rng.randint(0, CONFIG["vocab_size"], length).astype(np.int32) for length in lengths]


def build_model() -> Any:
    """The random Llama on the card."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**CONFIG, attn_implementation="sdpa"))
    torch.set_default_dtype(torch.float32)
    return model


class Seen(NamedTuple):
    """One optimiser step, as it was over."""

    tokens: int
    loss: float
    moment: float


def tokenizer() -> Any:
    """A tokenizer that is asked for but not used: rows are token ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))  # noqa: S106
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")  # noqa: S106


def ours(steps: int, compiled: bool) -> list[Seen]:
    """Our loop."""
    from scaler_wizard.data.batches import Batches
    from scaler_wizard.data.token_rows import TokenRow
    from scaler_wizard.models.adapters import attach_lora
    from scaler_wizard.training.compiled import compile_blocks
    from scaler_wizard.training.forward import make_objective
    from scaler_wizard.training.loop import TrainSettings, train

    model = attach_lora(build_model(), rank=RANK, alpha=2 * RANK)
    if compiled:
        compile_blocks(model)
    found = [TokenRow(n, ids, np.ones(len(ids), dtype=np.bool_)) for n, ids in enumerate(rows())]
    batches = Batches(
        found, context=CONTEXT, batch_tokens=ROWS_PER_STEP * sum(map(len, rows())) // N_ROWS,
        micro_batch_tokens=MICRO_BATCH_TOKENS, seed=0,
    )  # fmt: skip
    # Two ways to the same end: functions fused by hand, or by the compiler.
    settings = TrainSettings(total_steps=steps, learning_rate=2e-4, fused=not compiled)
    training = train(model, batches, make_objective("sft"), settings, device="cuda")
    return [Seen(result.tokens, result.loss, time.perf_counter()) for result in training]


def trl_liger(steps: int, compiled: bool) -> list[Seen]:
    """SFTTrainer."""
    from peft import LoraConfig

    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    return sft_trainer(build_model(), steps, compiled, peft_config=adapter)


def unsloth(steps: int, compiled: bool) -> list[Seen]:
    """SFTTrainer on a model that Unsloth has patched and adapted."""
    from unsloth import FastLanguageModel  # before transformers, which it patches

    with tempfile.TemporaryDirectory() as folder:
        build_model().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        model, _ = FastLanguageModel.from_pretrained(folder, max_seq_length=CONTEXT, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=2 * RANK, lora_dropout=0, bias="none", use_gradient_checkpointing=False,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )  # fmt: skip
    return sft_trainer(model, steps, compiled)


def sft_trainer(model: Any, steps: int, compiled: bool, **options: Any) -> list[Seen]:
    """TRL at its best on one card: bf16, Liger, no activation checkpointing, grouped by length."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    seen: list[tuple[int, float, float]] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            if logs and "loss" in logs:
                seen.append((int(state.num_input_tokens_seen), float(logs["loss"]), time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=PADDED_ROWS,
                gradient_accumulation_steps=ROWS_PER_STEP // PADDED_ROWS, bf16=True, max_length=None,
                gradient_checkpointing=False, learning_rate=2e-4, torch_compile=compiled,
                use_liger_kernel=importlib.util.find_spec("liger_kernel") is not None,
                train_sampling_strategy="group_by_length", dataloader_num_workers=2, logging_steps=1,
                include_num_input_tokens_seen="non_padding", report_to="none", save_strategy="no",
            ),
            train_dataset=Dataset.from_dict({"input_ids": [ids.tolist() for ids in rows()]}),
            processing_class=tokenizer(),
            callbacks=[Watch()],
            **options,
        )  # fmt: skip
        trainer.train()
    before = [0, *(tokens for tokens, _, _ in seen)]
    return [Seen(tokens - start, *rest) for (tokens, *rest), start in zip(seen, before, strict=False)]


WAYS: dict[str, Callable[[int, bool], list[Seen]]] = {
    "ours": ours, "trl_liger": trl_liger, "unsloth": unsloth,
}  # fmt: skip


def child(name: str, steps: int, compiled: bool) -> None:
    """Run one way and print its figures."""
    torch.cuda.reset_peak_memory_stats()
    seen = WAYS[name](steps, compiled)
    timed = seen[WARMUP:]
    seconds = timed[-1].moment - seen[WARMUP - 1].moment
    figures = {
        "tokens_per_s": sum(step.tokens for step in timed) / seconds,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "loss": seen[-1].loss,
    }
    print(json.dumps(figures))


def matmul_rate() -> float:
    """FLOP/s of bf16 products of 8192 x 8192 on this card."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(5):
        a @ a
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - started)


def flops_per_token() -> float:
    """Forward and backward of a frozen base: 4 a weight, and attention over the mean of the rows' lengths."""
    hidden, layers, mlp = CONFIG["hidden_size"], CONFIG["num_hidden_layers"], CONFIG["intermediate_size"]
    kv = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp
    weights = layers * layer + hidden * CONFIG["vocab_size"]
    lengths = np.array([len(ids) for ids in rows()], dtype=np.float64)
    # Scores and weighted values: 4 T hidden a token forward, halved because causal; 2.5 times that backward.
    attention = 3.5 * 2 * hidden * layers * float((lengths**2).sum() / lengths.sum())
    return 4.0 * weights + attention


def cannot_run() -> str:
    """Why this machine cannot run the benchmark; "" where it can."""
    if not torch.cuda.is_available():
        return "no CUDA device: this benchmark compares training on a GPU"
    if not torch.cuda.is_bf16_supported():
        return f"{torch.cuda.get_device_name()} has no bf16"
    return ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile for every way")
    parser.add_argument("--child", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    reason = cannot_run()
    if reason:
        print(json.dumps({"skipped": reason}))
        return
    if arguments.child:
        child(arguments.child, arguments.steps, arguments.compile)
        return
    needed = {"ours": (), "trl_liger": ("trl", "datasets"), "unsloth": ("unsloth", "trl", "datasets")}
    ways = [name for name in WAYS if all(importlib.util.find_spec(item) for item in needed[name])]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name in ways:
            command = [sys.executable, __file__, "--child", name, "--steps", str(arguments.steps)]
            command += ["--compile"] if arguments.compile else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    rate, result = matmul_rate(), {"device": torch.cuda.get_device_name(), "steps": arguments.steps}
    for name in ways:
        speed = statistics.median(item["tokens_per_s"] for item in found[name])
        result[f"{name}_tokens_per_s"] = round(speed, 1)
        result[f"{name}_utilisation"] = round(speed * flops_per_token() / rate, 3)
        result[f"{name}_peak_bytes"] = int(max(item["peak_bytes"] for item in found[name]))
        result[f"{name}_loss"] = round(found[name][-1]["loss"], 4)
        if name != "ours":
            result[f"speedup_over_{name}"] = round(result["ours_tokens_per_s"] / speed, 2)
    result["matmul_tflops"] = round(rate / 1e12, 1)
    result["missing"] = [name for name in WAYS if name not in ways]
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
