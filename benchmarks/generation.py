"""Bulk generation: the inference engine against transformers' three ways, on one CPU thread.

    python benchmarks/generation.py [--json] [--model seedling|llama-30m] [--repeats N] [--threads N]

64 prompts of 20 to 400 tokens with answers of 8 to 192 tokens, greedy in fp32, on the embedded seedling
(reading beyond the context it was trained for, which costs the same) and on a random Llama of 30M parameters
(one repeat by default: one prompt at a time takes it 100 s). Each way generates for all prompts, in turns
within one process; medians of the repeats. Transformers' padded
batch runs every row to the longest answer of its batch of 16, so only the wanted tokens are counted; its
continuous batching (`generate_batch`) takes one answer length for all, so each of the lengths is a call of
its own. Results must equal those of one prompt at a time: the run fails otherwise, except where two logits
of the reference are closer than rounding, which is counted as `ties`.

The last line of `--json` has the worst of both models as `speedup_over_one_by_one`, and each model's figures
under `models`. "shared" (seedling only) is the same work on prompts that start with one common text of 300
tokens. The two models take about four and four and a half minutes on one core that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM, logging

from scaler_wizard.inference.generate import generate
from scaler_wizard.inference.requests import Request

N_PROMPTS = 64
ANSWER_LENGTHS = (8, 32, 96, 192)
PADDED_BATCH = 16
# Two logits this close are a tie that the order of a sum decides.
TIE = 1e-3


def seedling() -> Any:
    """The embedded model."""
    path = str(files("scaler_wizard").joinpath("assets/seedling"))
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    # transformers fills in what a generation config leaves open; here all ways run to the full length.
    model.generation_config.eos_token_id = None
    return model


def llama_30m() -> Any:
    """A random Llama of 30M parameters; its output layer is scaled so that logits stay apart."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, num_hidden_layers=8, intermediate_size=1408, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=4096, max_position_embeddings=1024, initializer_range=0.05,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    return model


MODELS: dict[str, Callable[[], Any]] = {"seedling": seedling, "llama-30m": llama_30m}
REPEATS = {"seedling": 2, "llama-30m": 1}


def requests_for(model: Any, prefix: int = 0) -> list[Request]:
    """Prompts of evenly spread lengths and answers of four lengths, shuffled; `prefix` tokens in common."""
    rng = random.Random(0)
    vocabulary = range(16, model.config.vocab_size)
    common = tuple(rng.choices(vocabulary, k=prefix))
    lengths = [20 + round(380 * i / (N_PROMPTS - 1)) for i in range(N_PROMPTS)]
    rng.shuffle(lengths)
    requests = []
    for i, length in enumerate(lengths):
        own = tuple(rng.choices(vocabulary, k=length if prefix == 0 else 20 + length // 8))
        requests.append(Request(common + own, ANSWER_LENGTHS[i % len(ANSWER_LENGTHS)]))
    return requests


def settings(n_new: int, stop_ids: frozenset[int] = frozenset()) -> GenerationConfig:
    """Greedy, to a stop token, or to the full length where there is none."""
    return GenerationConfig(
        max_new_tokens=n_new, do_sample=False, eos_token_id=sorted(stop_ids) or None, pad_token_id=0
    )


def answer(request: Request, tokens: Sequence[int]) -> list[int]:
    """What of generated tokens is the answer: up to its length or to its first stop token."""
    wanted = list(tokens[: request.max_new_tokens])
    ends = [at for at, token in enumerate(wanted) if token in request.stop_ids]
    return wanted[: ends[0]] if ends else wanted


def ours(model: Any, requests: Sequence[Request]) -> list[list[int]]:
    """The inference engine."""
    return [list(found.tokens) for found in generate(model, requests)]


def one_by_one(model: Any, requests: Sequence[Request]) -> list[list[int]]:
    """transformers' generate, a prompt at a time."""
    results = []
    for request in requests:
        tokens = torch.tensor([request.prompt])
        config = settings(request.max_new_tokens, request.stop_ids)
        output = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config)
        results.append(answer(request, output[0, tokens.shape[1] :].tolist()))
    return results


def padded(model: Any, requests: Sequence[Request]) -> list[list[int]]:
    """transformers' generate on left-padded batches of like length."""
    results: list[list[int]] = [[] for _ in requests]
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt))
    for start in range(0, len(order), PADDED_BATCH):
        batch = order[start : start + PADDED_BATCH]
        width = max(len(requests[i].prompt) for i in batch)
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, i in enumerate(batch):
            prompt = requests[i].prompt
            tokens[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        longest = max(requests[i].max_new_tokens for i in batch)
        config = settings(longest, requests[batch[0]].stop_ids)
        output = model.generate(tokens, attention_mask=mask, generation_config=config)
        for row, i in enumerate(batch):
            results[i] = answer(requests[i], output[row, width:].tolist())
    return results


def continuous(model: Any, requests: Sequence[Request]) -> list[list[int]]:
    """transformers' continuous batching; raises where it returns without results."""
    results: list[list[int]] = [[] for _ in requests]
    before = model.config._attn_implementation
    options = ContinuousBatchingConfig(
        num_blocks=256, max_batch_tokens=1024, page_size=128, use_cuda_graph=False, auto_switch_to_flash=False
    )
    try:
        for n_new in sorted({request.max_new_tokens for request in requests}):
            chosen = [i for i, request in enumerate(requests) if request.max_new_tokens == n_new]
            found = model.generate_batch(
                [list(requests[i].prompt) for i in chosen],
                generation_config=settings(n_new, requests[chosen[0]].stop_ids),
                continuous_batching_config=options,
                warmup=False,
            )
            replies = list(found.values())
            if len(replies) != len(chosen) or any(reply.error for reply in replies):
                error = next((reply.error for reply in replies if reply.error), "nothing came back")
                raise RuntimeError(str(error))
            for i, reply in zip(chosen, replies, strict=True):
                results[i] = answer(requests[i], list(reply.generated_tokens))
    finally:
        model.set_attn_implementation(before)
    return results


WAYS: dict[str, Callable[[Any, Sequence[Request]], list[list[int]]]] = {
    "one_by_one": one_by_one,
    "ours": ours,
    "padded": padded,
    "continuous": continuous,
}


def count_ties(
    model: Any, requests: Sequence[Request], expected: list[list[int]], found: list[list[int]]
) -> int:
    """Rows that differ from the reference at a tie; any other difference fails the benchmark."""
    ties = 0
    for request, right, got in zip(requests, expected, found, strict=True):
        if right == got:
            continue
        # Where one is the beginning of the other, they differ in its stop token.
        stop = [min(request.stop_ids)] if request.stop_ids else []
        pairs = zip(right + stop, got + stop, strict=False)
        at, tokens = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*request.prompt, *right[:at]]])).logits[0, -1]
        stops = sorted(request.stop_ids)
        first, second = (logits[stops].max() if token in stops else logits[token] for token in tokens)
        gap = float(abs(first - second))
        assert gap < TIE, f"token {at} of a prompt of {len(request.prompt)} differs, logits {gap} apart"
        ties += 1
    return ties


def measure(model: Any, requests: Sequence[Request], names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Seconds and tokens/s of each way, in turns; a way that fails is reported with its error."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    result: dict[str, Any] = {"new_tokens": sum(request.max_new_tokens for request in requests)}
    expected: list[list[int]] = []
    for _ in range(repeats):
        for name in list(seconds):
            started = time.perf_counter()
            try:
                found = WAYS[name](model, requests)
            except RuntimeError as error:
                result[f"{name}_failed"] = str(error)[:200]
                del seconds[name]
                continue
            seconds[name].append(time.perf_counter() - started)
            print(f"{name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
            expected = expected or found
            result[f"{name}_ties"] = count_ties(model, requests, expected, found)
    for name, times in seconds.items():
        result[f"{name}_tokens_per_s"] = round(result["new_tokens"] / statistics.median(times), 1)
        if name != "ours":
            ratios = [theirs / own for theirs, own in zip(times, seconds["ours"], strict=True)]
            result[f"speedup_over_{name}"] = round(statistics.median(ratios), 2)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", choices=list(MODELS), action="append")
    parser.add_argument(
        "--repeats", type=int, help="of each way; 2 for the seedling and 1 for the other when left out"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    results: dict[str, Any] = {}
    for name in arguments.model or MODELS:
        model = MODELS[name]()
        ours(model, requests_for(model)[:4])
        repeats = arguments.repeats or REPEATS[name]
        results[name] = measure(model, requests_for(model), arguments.ways, repeats)
        if name == "seedling":
            shared = requests_for(model, prefix=300)
            results[name]["shared"] = measure(model, shared, ("one_by_one", "ours"), 1)
        if not arguments.json:
            print(name, json.dumps(results[name], indent=2))
    worst = min(results, key=lambda name: float(results[name]["speedup_over_one_by_one"]))
    print(
        json.dumps({
            "speedup_over_one_by_one": results[worst]["speedup_over_one_by_one"],
            "ours_tokens_per_s": results[worst]["ours_tokens_per_s"],
            "worst_model": worst,
            "threads": arguments.threads,
            "models": results,
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
