"""Attention over packed rows: each segment attends to itself alone, and no T x T mask is ever built.

Registered with transformers as "scaler_varlen". A forward pass hands `segment_lengths` through the model's
keyword arguments; without them, or with a padding mask, this attention refuses to guess. Knows nothing of
losses or optimisers. Generation keeps the model's own attention: `packed_attention` puts it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from scaler_wizard.training.blocked_attention import blocked_attention, suits
from scaler_wizard.training.varlen import can_use_varlen, segments_varlen

NAME = "scaler_varlen"
# Queries of a block under a sliding window, where the window is shorter.
MIN_BLOCK = 512


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segment_lengths: tuple[int, ...] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment.

    Neighbouring segments of one length go through one call as a batch, on a CPU of few cores through
    `blocked_attention`. `is_causal` selects the flash kernel on CPU and GPU, whose memory does not grow with
    the square; a segment longer than the model's sliding window is read in blocks (`_windowed`).

    Args:
        query: [1, heads, T, head_dim]. key, value: [1, key-value heads, T, head_dim].
        sliding_window: tokens a query sees, itself included; all before it when None.
        segment_lengths: tokens of each segment, summing to T.

    Returns:
        [1, T, heads, head_dim], and no attention weights.
    """
    n_tokens = query.shape[2]
    assert attention_mask is None, "packed attention takes no mask"
    assert segment_lengths is not None, f"{type(module).__name__} did not receive segment_lengths"
    assert sum(segment_lengths) == n_tokens == key.shape[2], (segment_lengths, n_tokens, key.shape)
    assert options.get("softcap") is None, "soft-capped attention is not plain softmax"
    assert options.get("s_aux") is None, "attention with sinks is not plain softmax"
    if can_use_varlen(query, dropout):
        return segments_varlen(query, key, value, segment_lengths, scaling, sliding_window), None
    n_repeats = query.shape[1] // key.shape[1]
    runs = [(length, len(list(group))) for length, group in groupby(segment_lengths)]
    # Split, not sliced: the gradient of n slices is n tensors of full length, the gradient of a split is one.
    sizes = [length * n_segments for length, n_segments in runs]
    parts = zip(*(x[0].split_with_sizes(sizes, dim=1) for x in (query, key, value)), strict=True)
    outputs = []
    for (length, n_segments), run in zip(runs, parts, strict=True):
        # [heads, n * length, d] -> [n, heads, length, d]
        q, k, v = (x.unflatten(1, (n_segments, length)).transpose(0, 1) for x in run)
        if sliding_window is not None and length > sliding_window:
            out = _windowed(q, k, v, sliding_window, dropout, scaling)
        elif not dropout and suits(query, length):
            out = blocked_attention(q, k, v, scaling)
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=n_repeats > 1
            )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return (torch.cat(outputs) if len(outputs) > 1 else outputs[0])[None], None


def _windowed(
    query: Tensor, key: Tensor, value: Tensor, window: int, dropout: float, scaling: float | None
) -> Tensor:
    """Key j is seen by query i when i - window < j <= i; a block of queries reads its own keys alone.

    Time and memory are length x (window + block) and not length^2: at 32,768 tokens one whole mask would take
    4 GiB in fp32. All [n, heads, length, head_dim].
    """
    length, block = query.shape[2], max(window, MIN_BLOCK)
    outputs = []
    for start in range(0, length, block):
        end, low = min(start + block, length), max(0, start - window + 1)
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end], key[:, :, low:end], value[:, :, low:end],
                attn_mask=_window_mask(start, end, low, window, query.device),
                dropout_p=dropout, scale=scaling, enable_gqa=query.shape[1] > key.shape[1],
            )
        )  # fmt: skip
    return torch.cat(outputs, dim=2)


def _window_mask(start: int, end: int, low: int, window: int, device: torch.device) -> Tensor:
    """[end - start, end - low] bool: for queries from `start` on and keys from `low` on."""
    distance = torch.arange(start, end, device=device)[:, None] - torch.arange(low, end, device=device)
    return (distance >= 0) & (distance < window)


def _no_mask(*, attention_mask: Tensor | None = None, **_: Any) -> None:
    """The mask of packed attention: none. A padded batch has no business here."""
    assert attention_mask is None, "packed attention takes no padding mask; pack rows instead"


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, _no_mask)


def supports_varlen(config: Any) -> bool:
    """Whether a model's attention is plain causal softmax, with or without sliding windows.

    Soft-capped scores (Gemma 2), attention sinks (gpt-oss), chunked and linear attention are not.
    """
    layer_types = set(getattr(config, "layer_types", None) or ())
    return (
        getattr(config, "attn_logit_softcapping", None) is None
        and getattr(config, "attention_chunk_size", None) is None
        and config.model_type not in {"gpt_oss"}
        and getattr(config, "is_causal", True)
        and layer_types <= {"full_attention", "sliding_attention"}
    )


@contextmanager
def packed_attention(model: Any) -> Iterator[str]:
    """Switch a transformers model to attention that respects packed segments, and back at the end.

    The decoder alone is switched: pictures are encoded before, by a tower with attention of its own.

    Yields the name used: "scaler_varlen", or "eager", where transformers builds a block-diagonal 4-D mask
    from the restarting position ids (slow; for models that `supports_varlen` excludes).
    """
    decoder = model.get_decoder()
    before = decoder.config._attn_implementation
    name = NAME if supports_varlen(decoder.config) else "eager"
    decoder.set_attn_implementation(name)
    try:
        yield name
    finally:
        decoder.set_attn_implementation(before)
