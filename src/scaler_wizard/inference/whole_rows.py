"""Generation for models that cannot run on slots: rows of one length together, through the model's own cache.

Length-dependent rotary frequencies (dynamic NTK, LongRoPE) are those of the row's own length here, and PEFT's
prefix stands where PEFT puts it. Rows that have ended are evicted from the cache.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from scaler_wizard.inference.logits import process_logits
from scaler_wizard.inference.modes import (
    InferenceLimits,
    device_of,
    is_prompt_learning,
    needs_whole_rows,
    reset_rotary,
)
from scaler_wizard.inference.requests import Generation, Request
from scaler_wizard.inference.sampling import choose_tokens


def group_requests(requests: Sequence[Request], limits: InferenceLimits) -> list[list[int]]:
    """Indices of requests that run together: prompts of one length, longest first, within the limits."""

    def length(index: int) -> int:
        return len(requests[index].prompt)

    groups = []
    for _, same in groupby(sorted(range(len(requests)), key=lambda i: (-length(i), i)), key=length):
        indices = list(same)
        longest = max(requests[index].cache_length for index in indices)
        size = max(1, min(limits.max_rows, limits.cache_tokens // longest))
        groups += [indices[start : start + size] for start in range(0, len(indices), size)]
    return groups


def generate_group(
    model: nn.Module, requests: Sequence[Request], limits: InferenceLimits
) -> list[Generation]:
    """Continue prompts of one length; inside `measuring`."""
    device = device_of(model)
    reset_rotary(model)
    generators = [random.Random(request.seed) for request in requests]
    alive = list(range(len(requests)))
    tokens: list[list[int]] = [[] for _ in requests]
    ended: dict[int, Generation] = {}
    output = _prefill(model, [request.prompt for request in requests], limits)
    # PEFT adds its prefix on every call of the wrapper; after the first it lives in the cache.
    wrapper: Any = model
    decoder: Any = wrapper.get_base_model() if is_prompt_learning(model) else model
    while True:
        temperatures = [requests[row].temperature for row in alive]
        draws = [generators[row].random() if requests[row].temperature > 0 else 0.0 for row in alive]
        logits_BV = process_logits(
            output.logits[:, -1], [requests[row] for row in alive], [tokens[row] for row in alive].__getitem__
        )
        chosen = choose_tokens(logits_BV, temperatures, draws)
        for row, token in zip(alive, chosen, strict=True):
            if token in requests[row].stop_ids:
                ended[row] = Generation(tuple(tokens[row]), "stop")
                continue
            tokens[row].append(token)
            if len(tokens[row]) == requests[row].max_new_tokens:
                ended[row] = Generation(tuple(tokens[row]), "length")
        keep = [slot for slot, row in enumerate(alive) if row not in ended]
        if not keep:
            return [ended[row] for row in range(len(requests))]
        cache = output.past_key_values
        if len(keep) < len(alive):
            cache.batch_select_indices(torch.tensor(keep, device=device))
            alive = [alive[slot] for slot in keep]
        last_B1 = torch.tensor([[tokens[row][-1]] for row in alive], device=device)
        output = decoder(input_ids=last_B1, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _prefill(model: nn.Module, prompts: Sequence[Sequence[int]], limits: InferenceLimits) -> Any:
    """Read the prompts; returns the output of the last pass."""
    tokens_BT = torch.tensor([list(prompt) for prompt in prompts], device=device_of(model))
    width = tokens_BT.shape[1]
    size = width if needs_whole_rows(model) else limits.chunk_tokens
    output: Any = None
    for start in range(0, width, size):
        output = model(
            input_ids=tokens_BT[:, start : start + size],
            past_key_values=None if output is None else output.past_key_values,
            use_cache=True,
            logits_to_keep=1,
        )
    return output
