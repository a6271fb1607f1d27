"""A linear head and a loss of each row's logits, a few rows at a time: all logits never exist at once.

What a row's loss is, the caller says (`RowLoss`): cross-entropy, a divergence from a teacher, the
log-probability of a token. Knows nothing of models or batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scaler_wizard.losses.sft import IGNORED, Head, head_logits

RowLoss = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(logits [R, V] in fp32 or fp64, number of the first row) -> (values [R], d values[r] / d logits[r] [R, V]).

Deterministic, because it may be asked twice: once forward, once more backward when the head itself is
trained. It must not change the logits.
"""

# A row loss holds several tensors of the size of a chunk (two softmaxes, their logarithms, a gradient), so a
# chunk is an eighth of the one of plain cross-entropy: 16 MB in fp32.
_CHUNK_LOGITS = 1 << 22
MAX_CHUNK_ROWS = 1024


def at_targets(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states [N, H] that predict a target, and the targets [N], in reading order.

    Args:
        hidden: [B, T, H]. labels: [B, T], unshifted, -100 where nothing is predicted.
    """
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    return hidden[:, :-1][wanted], targets[wanted]


def linear_rows(hidden: Tensor, head: Head, row_loss: RowLoss, *, chunk_rows: int | None = None) -> Tensor:
    """Values [N] of a row loss over the head's logits of hidden states [N, H]; differentiable.

    Gradients of the hidden states are computed chunk by chunk in the forward pass and kept ([N, H]); those of
    the head, where it is trained, by a second pass over the chunks backward, because only then the weight of
    each row is known. Peak memory is one chunk of logits either way, not vocabulary x sequence.

    Args:
        chunk_rows: rows at a time; from the size of the vocabulary when None.

    Returns:
        [N], fp32 (fp64 for fp64 input).
    """
    rows = chunk_rows or max(16, min(MAX_CHUNK_ROWS, _CHUNK_LOGITS // head.weight.shape[0]))
    values: Tensor = _LinearRows.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, head.scale, head.softcap, row_loss, rows, torch.is_grad_enabled()
    )
    return values


class _LinearRows(torch.autograd.Function):
    """See `linear_rows`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        softcap: float | None,
        row_loss: RowLoss,
        chunk_rows: int,
        grad_enabled: bool,
    ) -> Tensor:
        """hidden [N, H], weight [V, H], bias [V] -> values [N]."""
        head = Head(weight, bias, scale, softcap)
        values = torch.empty(
            hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
        )
        d_hidden = torch.empty_like(hidden) if grad_enabled and ctx.needs_input_grad[0] else None
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            values[rows], d_logits = _chunk(hidden[rows], head, row_loss, start)
            if d_hidden is not None:
                torch.mm(d_logits.to(weight.dtype), weight, out=d_hidden[rows])
        trains_head = any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(d_hidden, *((hidden, weight, bias) if trains_head else (None, None, None)))
        ctx.rest = (scale, softcap, row_loss, chunk_rows)
        return values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """d objective / d values [N] -> gradients of hidden, weight and bias."""
        row_weights = grad_outputs[0]
        d_hidden, hidden, weight, bias = ctx.saved_tensors
        if d_hidden is not None:
            d_hidden = (d_hidden * row_weights[:, None]).to(d_hidden.dtype)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        d_weight = torch.zeros_like(weight, dtype=row_weights.dtype) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=row_weights.dtype) if needs_bias else None
        scale, softcap, row_loss, chunk_rows = ctx.rest
        for start in range(0, hidden.shape[0] if needs_weight or needs_bias else 0, chunk_rows):
            rows = slice(start, start + chunk_rows)
            d_logits = _chunk(hidden[rows], Head(weight, bias, scale, softcap), row_loss, start)[1]
            d_logits = (d_logits * row_weights[rows, None]).to(hidden.dtype)
            if d_weight is not None:
                d_weight += d_logits.T @ hidden[rows]
            if d_bias is not None:
                d_bias += d_logits.sum(dim=0)
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        d_bias = None if d_bias is None else d_bias.to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None, None


def _chunk(hidden: Tensor, head: Head, row_loss: RowLoss, start: int) -> tuple[Tensor, Tensor]:
    """Values [R] of one chunk, and their gradient by the head's plain linear output [R, V]."""
    logits = head_logits(hidden, head)
    values, d_logits = row_loss(logits, start)
    if head.softcap is not None:  # d tanh(x / c) c / dx = 1 - tanh^2
        d_logits = d_logits * (1 - (logits / head.softcap).square())
    return values, d_logits * head.scale if head.scale != 1.0 else d_logits
