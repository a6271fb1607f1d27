"""How a model must be run to be measured: eval mode, no autograd, and what its position scheme allows.

Knows torch modules and PEFT's public properties; knows nothing of probes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class InferenceLimits:
    """Bounds on what one forward pass may hold at once. Results do not depend on them."""

    batch_tokens: int = 4096
    """Most tokens (rows x longest row) of a batch; a single longer row still runs, in chunks."""
    chunk_tokens: int = 2048
    """Most new tokens of one row in one forward pass; longer rows are prefilled through the KV cache."""
    cache_tokens: int = 32768
    """Most KV positions that generation reserves at once; a single longer request still runs."""
    max_rows: int = 64
    """Most requests that generate at once."""
    cache_bytes: int = 2**29
    """Most bytes of those positions; fewer positions for models whose keys and values are wide."""
    logit_elements: int = 2**26
    """Most logits (rows x positions x vocabulary) of one forward pass; 256 MiB in fp32."""


DEFAULT_LIMITS: Final = InferenceLimits()


def cache_positions(model: nn.Module, limits: InferenceLimits) -> int:
    """KV positions that generation may reserve for this model: at most `cache_tokens`, at least one."""
    config: Any = model.config
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    item = next(model.parameters()).element_size()
    position = 2 * config.num_hidden_layers * heads * width * item
    return max(1, min(limits.cache_tokens, limits.cache_bytes // int(position)))


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter, where inputs go."""
    return next(model.parameters()).device


def vocabulary_size(model: nn.Module) -> int:
    """Width of the logits, from the model's configuration (its text part where there are several)."""
    config: Any = model.config
    size = getattr(config, "vocab_size", None)
    return int(size if size is not None else config.get_text_config().vocab_size)


def is_prompt_learning(model: nn.Module) -> bool:
    """Whether a PEFT prefix or prompt is active: padding and chunks would move its positions."""
    config = getattr(model, "active_peft_config", None)
    return bool(getattr(config, "is_prompt_learning", False))


def _length_dependent_rotaries(model: nn.Module) -> list[tuple[nn.Module, list[str | None]]]:
    """Rotary modules whose frequencies follow the length, with their layer types (None: one for all)."""
    found: list[tuple[nn.Module, list[str | None]]] = []
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        if isinstance(rope_type, dict):
            layers: list[str | None] = [key for key, value in rope_type.items() if _follows_length(value)]
        else:
            layers = [None] if _follows_length(rope_type) else []
        if layers:
            found.append((module, layers))
    return found


def _follows_length(rope_type: object) -> bool:
    # The two rules of transformers' dynamic_rope_update decorator.
    return isinstance(rope_type, str) and ("dynamic" in rope_type or rope_type == "longrope")


def needs_whole_rows(model: nn.Module) -> bool:
    """Whether rows must run alone in length and in one forward pass to get the frequencies of their length.

    True for dynamic NTK and LongRoPE, where a chunk or a longer neighbour in the batch would change the
    frequencies, and for prefix or prompt tuning, where PEFT owns cache and positions.
    """
    return is_prompt_learning(model) or bool(_length_dependent_rotaries(model))


def reset_rotary(model: nn.Module) -> None:
    """Bring length-dependent frequencies back to the original ones.

    transformers keeps the frequencies of the longest input until one shorter than the original context
    comes by, so that a result would otherwise depend on what was measured before.
    """
    for module, layers in _length_dependent_rotaries(model):
        device = device_of(model)
        x, position = torch.zeros(1, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)
        for layer in layers:
            module(x, position) if layer is None else module(x, position, layer_type=layer)


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Eval mode and `torch.inference_mode` inside; every module's own mode and frequencies restored after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
        # Outside inference mode, so that no inference tensor stays behind for training to trip over.
        reset_rotary(model)
