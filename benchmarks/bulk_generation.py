"""Bulk generation as a bootstrap asks for it: the engine against transformers' three ways, on one CPU thread.

    python benchmarks/bulk_generation.py [--json] [--prompts N] [--repeats N] [--threads N]

The embedded seedling answers tasks of the embedded world in document form: short prompts, few-token answers
that end at a line break, at most 32 tokens; the work of stage 1. Unlike `generation.py`, whose answers have
fixed lengths, answers end where the model ends them, so that a padded batch waits for its slowest row.
Greedy answers of all ways must be equal token for token (the run fails otherwise, except at ties of two
logits, which are counted). Tokens/s counts the tokens of answers, without padding and stop tokens; medians
of the repeats, the ways in turns within one process. One prompt at a time is measured on the first eighth
of the prompts.

"sampled" is the engine alone with four samples of each prompt at temperature 0.7, as a stage asks for them;
transformers' ways have no random generator for each request, so that the same work cannot be asked of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoTokenizer, logging

from generation import WAYS, count_ties, ours, seedling
from scaler_wizard.data.world_embedded import EmbeddedWorld
from scaler_wizard.inference.requests import Request, sample_seed

ANSWER_TOKENS = 32
SAMPLES = 4
TEMPERATURE = 0.7


def document_requests(tokenizer: Any, n: int) -> list[Request]:
    """The first `n` training tasks of the embedded world as documents; a line break ends an answer."""
    stops = frozenset(token for token in range(len(tokenizer)) if "\n" in tokenizer.decode([token]))
    tasks = EmbeddedWorld().tasks("train", n, 0)
    return [Request(tuple(tokenizer.encode(task.document)), ANSWER_TOKENS, stops) for task in tasks]


def timed(model: Any, way: str, requests: list[Request]) -> tuple[float, list[list[int]]]:
    """Tokens of answers per second, and the answers."""
    started = time.perf_counter()
    found = WAYS[way](model, requests)
    seconds = time.perf_counter() - started
    print(f"{way}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return sum(map(len, found)) / seconds, found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    model = seedling()
    requests = document_requests(AutoTokenizer.from_pretrained(model.name_or_path), arguments.prompts)
    few = max(1, len(requests) // 8)
    expected = ours(model, requests)  # warms up, and is what one prompt at a time is compared with
    speeds: dict[str, list[float]] = {}
    result: dict[str, Any] = {"prompts": len(requests), "answer_tokens": sum(map(len, expected))}
    for _ in range(arguments.repeats):
        for way in WAYS:
            part = requests[:few] if way == "one_by_one" else requests
            try:
                speed, found = timed(model, way, part)
            except RuntimeError as error:
                result[f"{way}_failed"] = str(error)[:200]
                continue
            speeds.setdefault(way, []).append(speed)
            result[f"{way}_ties"] = count_ties(model, part, expected[: len(part)], found)
    sampled = [
        replace(request, temperature=TEMPERATURE, seed=sample_seed(0, number, sample))
        for number, request in enumerate(requests)
        for sample in range(1, SAMPLES + 1)
    ]
    result["sampled_tokens_per_s"] = round(timed(model, "ours", sampled)[0], 1)
    for way, measured in speeds.items():
        result[f"{way}_tokens_per_s"] = round(statistics.median(measured), 1)
        if way != "ours":
            ratios = [own / theirs for own, theirs in zip(speeds["ours"], measured, strict=False)]
            result[f"speedup_over_{way}"] = round(statistics.median(ratios), 2)
    if not arguments.json:
        print(json.dumps(result, indent=2))
    print(json.dumps({**result, "threads": arguments.threads}))


if __name__ == "__main__":
    main()
