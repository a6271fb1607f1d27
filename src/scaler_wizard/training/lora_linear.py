"""A frozen linear layer with its LoRA adapter as one autograd function, without round trips between formats.

PEFT's own forward pass casts activations to the adapter's float32 and back and leaves every intermediate
to autograd. Here all of it runs in the base's format: forward saves only the input and the rank-r product,
backward computes no gradient of the frozen weight and adds the adapter's share in place. Knows no modules.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class LoraWeights(NamedTuple):
    """y = x W^T + b + x A^T (s B)^T, everything in the format of W, nothing tracked by autograd."""

    weight: Tensor
    """W [out, in]."""
    bias: Tensor | None
    """b [out]."""
    a: Tensor
    """A [r, in]."""
    scaled_b: Tensor
    """s B [out, r]."""
    scale: float
    """s, alpha / r or alpha / sqrt(r)."""


def forward_rows(x: Tensor, w: LoraWeights, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x [T, in] -> (y [T, out], x A^T [T, r]); the second is 0 where `active` [T, 1] bool is False."""
    low = x @ w.a.T
    if active is not None:
        low.mul_(active)
    y = F.linear(x, w.weight, w.bias)
    return y.addmm_(low, w.scaled_b.T), low


def backward_rows(
    dy: Tensor,
    x: Tensor,
    low: Tensor,
    w: LoraWeights,
    dx: Tensor | None,
    active: Tensor | None = None,
    *,
    needs_dx: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of `forward_rows`: (dx [T, in], dA [r, in] and dB [out, r] in fp32 at least).

    `dx`, where given, is another branch's gradient of the same input: this one is added to it in place.
    """
    d_low = dy @ w.scaled_b
    if active is not None:
        d_low.mul_(active)
    if needs_dx:
        dx = dy @ w.weight if dx is None else dx.addmm_(dy, w.weight)
        dx.addmm_(d_low, w.a)
    accumulate = torch.promote_types(dy.dtype, torch.float32)
    d_a = (d_low.T @ x).to(accumulate)
    # B's gradient is of B, not of s B.
    d_b = (dy.T @ low).to(accumulate).mul_(w.scale)
    return dx, d_a, d_b


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, w: LoraWeights, active: Tensor | None) -> Tensor:
        """`a` and `b` are the trained masters: their values are in `w`, here they only take gradients."""
        rows = x.reshape(-1, x.shape[-1])
        y, low = forward_rows(rows, w, active)
        ctx.save_for_backward(rows, low)
        ctx.w, ctx.active, ctx.shape, ctx.dtypes = w, active, x.shape, (a.dtype, b.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, low = ctx.saved_tensors
        dx, d_a, d_b = backward_rows(
            dy.reshape(-1, dy.shape[-1]), x, low, ctx.w, None, ctx.active, needs_dx=ctx.needs_input_grad[0]
        )
        dx = None if dx is None else dx.view(ctx.shape)
        return dx, d_a.to(ctx.dtypes[0]), d_b.to(ctx.dtypes[1]), None, None


def lora_linear(x: Tensor, a: Tensor, b: Tensor, w: LoraWeights, active: Tensor | None = None) -> Tensor:
    """x [..., in] -> [..., out]; gradients go to x, a and b.

    Args:
        active: the rows of x (its leading axes as one, T) that the adapter acts on [T, 1] bool; None: all.
    """
    y: Tensor = _LoraLinear.apply(x, a, b, w, active)  # type: ignore[no-untyped-call]
    return y
