"""Supervised fine-tuning: cross-entropy of the targets, without ever holding all logits.

Knows nothing of models or batches: hidden states, a head and labels go in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scaler_wizard.losses.liger import can_use_liger, liger_cross_entropy

IGNORED = -100
# Rows of logits at a time: 1,024, fewer for large vocabularies so that a chunk stays near 128 MB in fp32, and
# on a CPU near 16 MB: that half fits a cache, and glibc keeps no block above 32 MB for the next chunk.
MAX_CHUNK_ROWS = 1024
_CHUNK_LOGITS = 1 << 25
_CHUNK_LOGITS_CPU = 1 << 22


class LossResult(NamedTuple):
    """A loss as a sum, so that the caller decides what to divide it by."""

    loss_sum: Tensor
    """Sum over targets [], nats, fp32 (fp64 for fp64 input); differentiable."""
    n_labels: int
    """Targets summed over."""
    metrics: dict[str, Tensor]
    """Detached sums over the targets, by name."""


class Head(NamedTuple):
    """How a model turns hidden states into logits: softcap(scale * (hidden @ weight.T + bias))."""

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    """Factor on the logits (Cohere's logit_scale, one over Granite's logits_scaling)."""
    softcap: float | None = None
    """c of c * tanh(logits / c) (Gemma 2); none when None."""


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """Logits [..., V] of hidden states [..., H], in fp32 at least, as the model itself would give them."""
    logits = F.linear(hidden, head.weight, head.bias)
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def sft_loss(hidden: Tensor, head: Head, labels: Tensor, *, chunk_rows: int | None = None) -> LossResult:
    """Sum of -log p(label[t+1] | hidden[t]) over labels that are not -100.

    Hidden states are gathered at the positions before a target first, then the head, the softmax and their
    gradients run over `chunk_rows` targets at a time, gradients in the forward pass (as Liger's fused linear
    cross-entropy does). Peak memory is one chunk of logits, whatever the vocabulary or the sequence.

    Args:
        hidden: final hidden states [B, T, H].
        labels: [B, T], unshifted; the first of every segment must be -100.
        chunk_rows: targets at a time; when None, from the size of the vocabulary, or Liger's kernel on a GPU.

    Returns:
        the sum, the number of targets, and {"correct": targets that no token was more likely than}.
    """
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    gathered = hidden[:, :-1][wanted]
    chosen = targets[wanted]
    if chunk_rows is None and can_use_liger(gathered, head.scale):
        loss_sum, correct = liger_cross_entropy(gathered, head.weight, head.bias, head.softcap, chosen)
        return LossResult(loss_sum, int(chosen.shape[0]), {"correct": correct})
    rows = chunk_rows or rows_at_a_time(head.weight.shape[0], hidden.device)
    loss_sum, correct = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        gathered, head.weight, head.bias, chosen, head.scale, head.softcap, rows, torch.is_grad_enabled()
    )
    return LossResult(loss_sum, int(chosen.shape[0]), {"correct": correct})


def rows_at_a_time(vocabulary: int, device: torch.device) -> int:
    """Targets whose logits exist at the same time."""
    most = _CHUNK_LOGITS_CPU if device.type == "cpu" else _CHUNK_LOGITS
    return max(32, min(MAX_CHUNK_ROWS, most // vocabulary))


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear head, with gradients computed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        chunk_rows: int,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        """hidden [N, H], weight [V, H], bias [V], targets [N] -> (loss sum [], correct [])."""
        needs_hidden, needs_weight, needs_bias = (
            grad_enabled and needs for needs in ctx.needs_input_grad[:3]
        )
        accumulate = torch.promote_types(hidden.dtype, torch.float32)
        loss_sum = torch.zeros((), dtype=accumulate, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=accumulate) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=accumulate) if bias is not None and needs_bias else None
        for start in range(0, hidden.shape[0], chunk_rows):
            chunk, target = hidden[start : start + chunk_rows], targets[start : start + chunk_rows]
            logits = head_logits(chunk, Head(weight, bias, scale, softcap))
            # Not `max` with its indices: ten times slower on a CPU, and one pass of five here.
            best = logits.amax(dim=-1)
            at_target = logits.gather(1, target[:, None])
            correct += (at_target[:, 0] == best).sum()
            slope = 1 - (logits / softcap).square_() if softcap is not None else None
            exponentials = logits.sub_(best[:, None]).exp_()
            total = exponentials.sum(dim=-1)
            loss_sum += (total.log() + best - at_target[:, 0]).sum()
            if d_hidden is None and d_weight is None and d_bias is None:
                continue
            # d loss / d logit = softmax - one-hot; through the cap, times 1 - tanh^2; through the scale.
            d_logits = exponentials.div_(total[:, None])
            d_logits.scatter_add_(1, target[:, None], torch.full_like(at_target, -1.0))
            if slope is not None:
                d_logits.mul_(slope)
            d_logits = d_logits.mul_(scale).to(hidden.dtype) if scale != 1.0 else d_logits.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d_logits, weight, out=d_hidden[start : start + chunk_rows])
            if d_weight is not None:
                d_weight += d_logits.T @ chunk
            if d_bias is not None:
                d_bias += d_logits.sum(dim=0)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, bias.dtype if bias is not None else None)
        ctx.mark_non_differentiable(correct)
        return loss_sum, correct

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        """Scale the stored gradients by d objective / d loss sum."""
        gradients = tuple(
            None if gradient is None else (gradient * grad_outputs[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, None, None, None, None, None)
