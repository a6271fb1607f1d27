"""Prompts to continuations for probes: encodes texts and asks the inference engine.

Knows a causal language model and a tokenizer; knows nothing of probes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.evals.tokenizing import Tokenizer
from scaler_wizard.inference.generate import generate, stop_token_ids
from scaler_wizard.inference.logits import LogitProcessor
from scaler_wizard.inference.modes import InferenceLimits
from scaler_wizard.inference.requests import Request

__all__ = ["generate_batch", "stop_token_ids"]


def generate_batch(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    max_new_tokens: int,
    stop_ids: frozenset[int] | None = None,
    *,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    processor: LogitProcessor | None = None,
    limits: InferenceLimits | None = None,
    on_progress: OnProgress = no_progress,
) -> list[list[int]]:
    """Continue every prompt until a stop token or `max_new_tokens`; the stop token is not returned.

    prompts: texts (encoded with the tokenizer's special tokens) or token ids, none of them empty.
    stop_ids: `stop_token_ids(model, tokenizer)` when None; an empty set never stops early.
    temperature: 0 is greedy; above 0 samples, and `seeds` holds one seed per prompt.
    processor: changes the logits of every prompt before each choice.

    A result shorter than `max_new_tokens` ended by itself. In fp32 greedy equals one prompt at a time.
    """
    assert temperature == 0 or (seeds is not None and len(seeds) == len(prompts))
    rows = [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    stops = stop_token_ids(model, tokenizer) if stop_ids is None else stop_ids
    own_seeds = seeds if seeds is not None else [0] * len(rows)
    requests = [
        Request(tuple(row), max_new_tokens, stops, temperature, seed, processor)
        for row, seed in zip(rows, own_seeds, strict=True)
    ]
    found = generate(model, requests, limits=limits, on_progress=on_progress)
    return [list(generation.tokens) for generation in found]
