"""LoRA SFT on this machine's CPU: our loop against TRL's SFTTrainer, and against the machine's own limits.

    python benchmarks/training.py [--json] [--quick] [--rounds 2] [--steps 2] [--only NAME ...] [--threads N]

The job of record: a random Llama of 115M parameters, rows of 20 to 1,000 tokens, 8 rows a step, rank 16 on
all linear layers, every token a target. Contenders take turns, each turn in a fresh process so that peak
memory is its own; the first step of a turn is warm-up and not counted. `trl_default` is SFTConfig as it
comes but for `use_cpu`, `trl_best` the fastest setting found here (bfloat16 weights, no gradient
checkpointing, grouped by length). All start from the same weights and adapter; `ours` and `trl_default` see
the same rows in the same order, so their losses compare step by step.

`--quick` takes 10 of the 30 layers, one round and one counted step: about three minutes of two free cores.
Shares of the matmul rate come out higher there, since the head weighs more.

On a machine shared with others, read the figures per CPU-second with `--threads 1`: seconds of the wall then
measure the neighbours.

The last line of `--json` is one object: medians over the turns. Tokens are real ones, padding is not work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

SHAPE: dict[str, Any] = {
    "vocab_size": 16_384, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}  # fmt: skip
RANK, ROWS_PER_STEP, ROWS = 16, 8, 512
LEARNING_RATE = 1e-3
MICRO_BATCH_TOKENS = 2048
CONTENDERS = ("ours", "plain", "trl_best", "trl_default", "probe")


def rows() -> list[Any]:
    """Token ids of every row: words of a Zipf law, half of them decided by the word before."""
    import numpy as np

    rng = np.random.RandomState(7)
    vocabulary = SHAPE["vocab_size"]
    successor = rng.permutation(vocabulary)
    made = []
    for length in rng.randint(20, 1001, ROWS):
        ids = np.minimum(rng.zipf(1.2, length), vocabulary) - 1
        follows = rng.rand(length) < 0.5
        for at in range(1, length):
            if follows[at]:
                ids[at] = successor[ids[at - 1]]
        made.append(ids)
    return made


def build_model(dtype: str) -> Any:
    """The model of record with its adapter: the same numbers in every contender, rounded to `dtype`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from scaler_wizard.models.adapters import attach_lora

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(getattr(torch, dtype))
    return attach_lora(model, rank=RANK, alpha=32.0, seed=0)


def flops_per_token() -> float:
    """Least matrix work of one trained token: forward and input gradient of the frozen base, all of LoRA.

    Attention is left out (it depends on the rows' lengths), so that the fraction reported is too low if
    anything.
    """
    d, m, kv = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_key_value_heads"] * 64
    shapes = [(d, d), (d, kv), (d, kv), (d, d), (d, m), (d, m), (m, d)]
    base = sum(a * b for a, b in shapes) * SHAPE["num_hidden_layers"] + SHAPE["vocab_size"] * d
    adapter = sum((a + b) * RANK for a, b in shapes) * SHAPE["num_hidden_layers"]
    return float(4 * base + 6 * adapter)


class EightRows:
    """Steps of exactly 8 rows, packed, as TRL takes them; the loop asks for nothing but `step`."""

    def __init__(self) -> None:
        import numpy as np

        from scaler_wizard.data.token_rows import TokenRow

        self._rows = [
            TokenRow(number, ids.astype(np.int32), np.ones(len(ids), bool))
            for number, ids in enumerate(rows())
        ]

    def step(self, index: int) -> Any:
        """The micro-batches of step `index`."""
        from scaler_wizard.data.batches import Step, collate, pack

        chosen = self._rows[index * ROWS_PER_STEP : (index + 1) * ROWS_PER_STEP]
        bins = pack([len(row.ids) for row in chosen], MICRO_BATCH_TOKENS)
        return Step(tuple(collate(chosen[at] for at in members) for members in bins))


def settings(fused: bool = True) -> Any:
    """Optimiser settings of the job of record, TRL's defaults but for the rate."""
    from scaler_wizard.training.loop import TrainSettings

    return TrainSettings(
        total_steps=ROWS // ROWS_PER_STEP, learning_rate=LEARNING_RATE, warmup_fraction=0.0,
        schedule="linear", fused=fused,
    )  # fmt: skip


def run_ours(steps: int, fused: bool) -> dict[str, Any]:
    """Our loop as recipes call it; `fused=False` is the same loop over PEFT's and transformers' layers."""
    from scaler_wizard.training.forward import make_objective
    from scaler_wizard.training.loop import train

    model = build_model("bfloat16")
    losses, tokens, seconds, cpu = [], [], [], []
    batches: Any = EightRows()
    started, started_cpu = time.perf_counter(), time.process_time()
    for result in train(model, batches, make_objective("sft"), settings(fused)):
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
        losses.append(result.loss)
        tokens.append(result.tokens)
        if result.step > steps:
            break
        started, started_cpu = time.perf_counter(), time.process_time()
    return {
        "tokens": sum(tokens[1:]),
        "seconds": sum(seconds[1:]),
        "cpu_seconds": sum(cpu[1:]),
        "losses": losses,
    }


def run_trl(steps: int, best: bool) -> dict[str, Any]:
    """TRL's SFTTrainer on the rows, one optimiser step of 8 rows at a time."""
    import datasets
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    tokens: list[int] = []
    seconds: list[float] = []
    cpu: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Seconds of each step, and an end without a schedule of its own."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started, self.started_cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seconds.append(time.perf_counter() - self.started)
            cpu.append(time.process_time() - self.started_cpu)
            control.should_training_stop = len(seconds) > steps

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    class Counting(SFTTrainer):  # type: ignore[misc]
        """Counts what is not padding."""

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            tokens.append(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *rest, **named)

    options: dict[str, Any] = {"train_sampling_strategy": "sequential"}
    if best:
        options = {
            "bf16": False,
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
        }
    with tempfile.TemporaryDirectory() as folder:
        trainer = Counting(
            model=build_model("bfloat16" if best else "float32"),
            args=SFTConfig(
                output_dir=folder, use_cpu=True, report_to="none", learning_rate=LEARNING_RATE,
                num_train_epochs=1, logging_steps=1, save_strategy="no", disable_tqdm=True, **options,
            ),
            train_dataset=datasets.Dataset.from_dict({"input_ids": [ids.tolist() for ids in rows()]}),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")),  # noqa: S106
                pad_token="<pad>", eos_token="<eos>",  # noqa: S106
            ),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    return {
        "tokens": sum(tokens[1:]),
        "seconds": sum(seconds[1:]),
        "cpu_seconds": sum(cpu[1:]),
        "losses": losses,
    }


def run_probe() -> dict[str, Any]:
    """What the machine gives: matmul rates at the model's own shapes, copying, and memory touched first."""
    import torch

    def best_of(work: Any, seconds: float = 0.4, clock: Any = time.perf_counter) -> float:
        work()
        least, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = clock()
            work()
            least = min(least, clock() - started)
        return least

    d, m = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    rates: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for dtype in (torch.bfloat16, torch.float32):
            x, wide = torch.randn(2048, d).to(dtype), torch.randn(2048, m).to(dtype)
            up, down = torch.randn(m, d).to(dtype), torch.randn(d, m).to(dtype)
            out_wide, out = torch.empty_like(wide), torch.empty_like(x)
            work = 2.0 * 2048 * d * m / 1e9
            if dtype == torch.bfloat16:
                cpu_rate = work / best_of(
                    lambda x=x, w=up, o=out_wide: torch.mm(x, w.T, out=o), clock=time.process_time
                )
            rates[str(dtype).removeprefix("torch.")] = {
                "up": work / best_of(lambda x=x, w=up, o=out_wide: torch.mm(x, w.T, out=o)),
                "up_dx": work / best_of(lambda g=wide, w=up, o=out: torch.mm(g, w, out=o)),
                "down": work / best_of(lambda x=wide, w=down, o=out: torch.mm(x, w.T, out=o)),
            }
        a = torch.zeros(64 << 20, dtype=torch.uint8)
        b = torch.zeros_like(a)
        copy = 2 * a.numel() / best_of(lambda: b.copy_(a)) / 1e9
        warm = a.numel() / best_of(a.zero_) / 1e9
        fresh = a.numel() / best_of(lambda: torch.empty(64 << 20, dtype=torch.uint8).zero_()) / 1e9
    return {
        "matmul_gflops": rates,
        "bf16_gflops": max(rates["bfloat16"].values()),
        "bf16_gflops_per_cpu_s": cpu_rate,
        "copy_gb_per_s": copy,
        "write_warm_gb_per_s": warm,
        "write_first_touch_gb_per_s": fresh,
    }


def child(name: str, steps: int, threads: int, layers: int) -> None:
    """One turn of one contender; prints its result as the last line."""
    import resource

    import torch

    torch.set_num_threads(threads)
    SHAPE["num_hidden_layers"] = layers
    if name == "probe":
        result = run_probe()
    elif name in ("ours", "plain"):
        result = run_ours(steps, fused=name == "ours")
    else:
        result = run_trl(steps, best=name == "trl_best")
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("\n" + json.dumps(result))


def turn(name: str, steps: int, threads: int, layers: int) -> dict[str, Any]:
    """One turn in a fresh process."""
    options = {"--child": name, "--steps": steps, "--threads": threads, "--layers": layers}
    done = subprocess.run(
        [sys.executable, __file__, *(str(word) for option in options.items() for word in option)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def summary(turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the turns, and ratios of ours to the others."""
    found: dict[str, Any] = {}
    for name, results in turns.items():
        if name == "probe":
            continue
        found[f"{name}_tokens_per_s"] = statistics.median(r["tokens"] / r["seconds"] for r in results)
        per_cpu = statistics.median(r["tokens"] / r["cpu_seconds"] for r in results)
        found[f"{name}_tokens_per_cpu_s"] = per_cpu
        found[f"{name}_peak_bytes"] = int(statistics.median(r["peak_bytes"] for r in results))
        found[f"{name}_losses"] = [round(loss, 4) for loss in results[-1]["losses"]]
        found[f"{name}_final_loss"] = results[-1]["losses"][-1]
    for other in ("plain", "trl_best", "trl_default"):
        if "ours" in turns and other in turns:
            found[f"ours_over_{other}"] = found["ours_tokens_per_s"] / found[f"{other}_tokens_per_s"]
            per_cpu = found["ours_tokens_per_cpu_s"] / found[f"{other}_tokens_per_cpu_s"]
            found[f"ours_over_{other}_per_cpu_s"] = per_cpu
            ratio = found["ours_peak_bytes"] / found[f"{other}_peak_bytes"]
            found["peak_memory_ratio" if other == "trl_best" else f"peak_memory_ratio_{other}"] = ratio
    if "probe" in turns:
        rate = statistics.median(r["bf16_gflops"] for r in turns["probe"])
        per_cpu = statistics.median(r["bf16_gflops_per_cpu_s"] for r in turns["probe"])
        found["bf16_matmul_gflops"] = rate
        found["probe"] = turns["probe"][-1]
        if "ours" in turns:
            done = found["ours_tokens_per_cpu_s"] * flops_per_token()
            found["fraction_of_matmul_rate_per_cpu_s"] = done / (per_cpu * 1e9)
            found["fraction_of_matmul_rate"] = found["ours_tokens_per_s"] * flops_per_token() / (rate * 1e9)
        # What any trainer could reach here: every second spent in matrix products at their best rate.
        bound = per_cpu * 1e9 / flops_per_token()
        found["bound_tokens_per_cpu_s"] = bound
        for other in ("trl_best", "trl_default"):
            if other in turns:
                found[f"bound_over_{other}_per_cpu_s"] = bound / found[f"{other}_tokens_per_cpu_s"]
    return found


def main() -> None:
    """Let the contenders take turns and print what came out."""
    parser = argparse.ArgumentParser(description="LoRA SFT on the CPU: ours, TRL, and the machine's limits")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="10 layers, one round, one counted step")
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="depth of the model")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=2, help="counted steps of a turn, after one of warm-up")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.steps, arguments.threads, arguments.layers)
        return
    if arguments.quick:
        arguments.layers, arguments.rounds, arguments.steps = 10, 1, 1
    SHAPE["num_hidden_layers"] = arguments.layers
    turns: dict[str, list[dict[str, Any]]] = {}
    for number in range(arguments.rounds):
        for name in arguments.only:
            result = turn(name, arguments.steps, arguments.threads, arguments.layers)
            turns.setdefault(name, []).append(result)
            said = (
                f"{result['bf16_gflops']:.0f} GFLOP/s"
                if name == "probe"
                else f"{result['tokens'] / result['seconds']:.0f} tokens/s"
            )
            print(
                f"round {number + 1}  {name:12} {said}, peak {result['peak_bytes'] / 1e9:.2f} GB", flush=True
            )
    found = {
        "threads": arguments.threads,
        "layers": arguments.layers,
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        **summary(turns),
    }
    print(json.dumps(found) if arguments.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
