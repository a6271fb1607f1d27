"""Bulk generation: left-padded batches by length, KV cache, finished rows evicted, real stop tokens.

Greedy, or sampled with one random generator per row, so that a row's text does not depend on its batch.
Knows a causal language model and a tokenizer; knows nothing of probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scaler_wizard.evals.modes import (
    DEFAULT_LIMITS,
    InferenceLimits,
    device_of,
    is_prompt_learning,
    measuring,
    needs_whole_rows,
    reset_rotary,
)
from scaler_wizard.evals.progress import OnProgress, no_progress
from scaler_wizard.evals.tokenizing import Tokenizer


def stop_token_ids(model: nn.Module, tokenizer: Tokenizer) -> frozenset[int]:
    """Every token that ends a turn: the tokenizer's end token and those of the generation config."""
    config = getattr(model, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    ids = listed if isinstance(listed, list) else [listed]
    return frozenset(int(token) for token in [*ids, tokenizer.eos_token_id] if token is not None)


def generate_batch(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    max_new_tokens: int,
    stop_ids: frozenset[int] | None = None,
    *,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    limits: InferenceLimits = DEFAULT_LIMITS,
    on_progress: OnProgress = no_progress,
) -> list[list[int]]:
    """Continue every prompt until a stop token or `max_new_tokens`; the stop token is not returned.

    prompts: texts (encoded with the tokenizer's special tokens) or token ids, none of them empty.
    stop_ids: `stop_token_ids(model, tokenizer)` when None; an empty set never stops early.
    temperature: 0 is greedy; above 0 samples, and `seeds` holds one seed per prompt.

    A result shorter than `max_new_tokens` ended by itself. In fp32 greedy equals one prompt at a time.
    """
    assert max_new_tokens >= 1
    assert temperature == 0 or (seeds is not None and len(seeds) == len(prompts))
    rows = [tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    assert all(rows), "an empty prompt has nothing to continue"
    stops = stop_token_ids(model, tokenizer) if stop_ids is None else stop_ids
    results: list[list[int]] = [[] for _ in rows]
    done = 0
    with measuring(model):
        for indices in _groups(rows, max_new_tokens, needs_whole_rows(model), limits):
            sampler = _Sampler(temperature, [seeds[i] for i in indices] if seeds is not None else [])
            texts = _generate_group(model, [rows[i] for i in indices], max_new_tokens, stops, sampler, limits)
            for index, text in zip(indices, texts, strict=True):
                results[index] = text
            done += len(indices)
            on_progress(done, len(rows))
    return results


def _groups(
    rows: Sequence[Sequence[int]], max_new_tokens: int, equal_lengths: bool, limits: InferenceLimits
) -> list[list[int]]:
    """Indices of rows that are generated together: by falling length, within the token budget."""
    groups: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i)):
        longest = len(rows[groups[-1][0]]) if groups else 0
        fits = groups and (len(groups[-1]) + 1) * (longest + max_new_tokens) <= limits.batch_tokens
        if fits and (len(rows[index]) == longest or not equal_lengths):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


class _Sampler:
    """Chooses the next token of each row; row r draws only from its own generator."""

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self._temperature = temperature
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def choose(self, logits_BV: Tensor, rows: Sequence[int]) -> list[int]:
        if self._temperature == 0:
            return [int(token) for token in logits_BV.argmax(1).tolist()]
        # On the CPU, so that one seed gives one text whatever the device's own generator is.
        probabilities_BV = (logits_BV.float() / self._temperature).softmax(1).cpu()
        return [
            int(torch.multinomial(probabilities_V, 1, generator=self._generators[row]))
            for probabilities_V, row in zip(probabilities_BV, rows, strict=True)
        ]


def _generate_group(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: frozenset[int],
    sampler: _Sampler,
    limits: InferenceLimits,
) -> list[list[int]]:
    device = device_of(model)
    reset_rotary(model)
    alive = list(range(len(rows)))
    texts: list[list[int]] = [[] for _ in rows]
    logits_BV, cache, mask_BT = _prefill(model, rows, limits)
    # PEFT adds its prefix on every call of the wrapper; after the first it lives in the cache.
    wrapper: Any = model
    decoder: Any = wrapper.get_base_model() if is_prompt_learning(model) else model
    while True:
        chosen = sampler.choose(logits_BV, alive)
        keep: list[int] = []
        for slot, (row, token) in enumerate(zip(alive, chosen, strict=True)):
            if token in stops:
                continue
            texts[row].append(token)
            if len(texts[row]) < max_new_tokens:
                keep.append(slot)
        if not keep:
            return texts
        if len(keep) < len(alive):
            kept = torch.tensor(keep, dtype=torch.long, device=device)
            cache.batch_select_indices(kept)
            mask_BT = None if mask_BT is None else mask_BT[kept]
            alive, chosen = [alive[slot] for slot in keep], [chosen[slot] for slot in keep]
        step: dict[str, Any] = {}
        if mask_BT is not None:
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], dim=1)
            step = {"attention_mask": mask_BT, "position_ids": mask_BT.sum(1, keepdim=True) - 1}
        tokens_B1 = torch.tensor(chosen, dtype=torch.long, device=device)[:, None]
        output = decoder(input_ids=tokens_B1, past_key_values=cache, use_cache=True, logits_to_keep=1, **step)
        logits_BV, cache = output.logits[:, -1], output.past_key_values


def _prefill(
    model: nn.Module, rows: Sequence[Sequence[int]], limits: InferenceLimits
) -> tuple[Tensor, Any, Tensor | None]:
    """Read all prompts; returns the logits after the last token, the cache, and the mask (None: no pads)."""
    device, width = device_of(model), max(map(len, rows))
    tokens_BT = torch.tensor(
        [[0] * (width - len(row)) + list(row) for row in rows], dtype=torch.long, device=device
    )
    mask_BT: Tensor | None = None
    if any(len(row) < width for row in rows):
        lengths_B1 = torch.tensor([[len(row)] for row in rows], device=device)
        mask_BT = (torch.arange(width, device=device) >= width - lengths_B1).long()
    size = width if needs_whole_rows(model) else limits.chunk_tokens
    cache: Any = None
    for start in range(0, width, size):
        end = min(start + size, width)
        masked: dict[str, Any] = {}
        if mask_BT is not None:
            positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
            masked = {"attention_mask": mask_BT[:, :end], "position_ids": positions_BT[:, start:end]}
        output = model(
            input_ids=tokens_BT[:, start:end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **masked,
        )
        cache = output.past_key_values
    return output.logits[:, -1], cache, mask_BT
