"""Packed attention on a GPU in one kernel: torch's variable-length FlashAttention.

Segments of many lengths cost one launch a layer, where `training.attention` alone would launch one for each
run of equal lengths. Checked against `scaled_dot_product_attention` by a test marked `gpu`; speed unmeasured:
no GPU was at hand.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

# FlashAttention 2 needs Ampere; its head widths are multiples of 8 up to 256.
MIN_CAPABILITY = (8, 0)
MAX_HEAD_DIM = 256


def can_use_varlen(query: Tensor, dropout: float) -> bool:
    """Whether the kernel takes these queries [1, heads, T, head_dim]."""
    width = query.shape[3]
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and dropout == 0.0
        and width % 8 == 0
        and width <= MAX_HEAD_DIM
        and torch.cuda.get_device_capability(query.device) >= MIN_CAPABILITY
    )


def segments_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: tuple[int, ...],
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Causal attention within each segment.

    Args:
        query: [1, heads, T, head_dim]. key, value: [1, key-value heads, T, head_dim].
        sliding_window: tokens a query sees, itself included; all before it when None.

    Returns:
        [1, T, heads, head_dim].
    """
    bounds, longest = segment_bounds(segment_lengths, query.device), max(segment_lengths)
    # FlashAttention counts the tokens before the query's own.
    left = -1 if sliding_window is None else sliding_window - 1
    found = varlen_attn(
        query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1),
        bounds, bounds, longest, longest,
        scale=scaling, window_size=(left, 0), enable_gqa=query.shape[1] > key.shape[1],
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found[None]


@lru_cache(maxsize=8)
def segment_bounds(segment_lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """0, ..., T as int32 [segments + 1]; copied to the device once a micro-batch and not once a layer."""
    return torch.tensor([0, *accumulate(segment_lengths)], dtype=torch.int32, device=device)
