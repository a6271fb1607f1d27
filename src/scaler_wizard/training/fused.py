"""RMSNorm and the gated MLP as one autograd function each, for frozen weights, with less memory traffic.

Written operation by operation, these cost a third of a step on a CPU: every intermediate is written out,
kept for the backward pass and read again. Here a norm keeps its input and one number per row and works
through blocks that stay in the cache; the MLP recomputes its cheap product. Knows no modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaler_wizard.training.lora_linear import LoraWeights, backward_rows, forward_rows

# Elements of a block: 0.5 MB in fp32, so that a block and its temporaries stay in a core's second cache.
_BLOCK = 1 << 17


def _blocks(x: Tensor) -> Iterator[slice]:
    """Slices over the rows; on a GPU, where launches cost more than traffic, a single one."""
    rows, width = x.shape
    size = max(1, _BLOCK // width) if x.device.type == "cpu" else max(1, rows)
    return (slice(start, start + size) for start in range(0, rows, size))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        wide = torch.promote_types(x.dtype, torch.float32)
        y = torch.empty_like(rows)
        inverse = torch.empty(rows.shape[0], 1, dtype=wide, device=x.device)
        factor = weight.to(wide) + 1.0 if unit_offset else weight
        for at in _blocks(rows):
            block = rows[at].to(wide)
            inverse[at] = block.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
            normed = block * inverse[at]
            # Gemma multiplies before rounding, Llama after.
            y[at] = normed.mul_(factor) if unit_offset else normed.to(x.dtype).mul_(factor)
        ctx.save_for_backward(rows, inverse)
        ctx.weight, ctx.unit_offset, ctx.shape = weight, unit_offset, x.shape
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        """With n = x r and g = w dy: dx = r (g - n mean(g n)), mean over the features."""
        rows, inverse = ctx.saved_tensors
        wide = inverse.dtype
        d_rows = dy.reshape(rows.shape)
        factor = ctx.weight.to(wide) + 1.0 if ctx.unit_offset else ctx.weight.to(wide)
        dx = torch.empty_like(rows)
        for at in _blocks(rows):
            normed = rows[at] * inverse[at]
            scaled = d_rows[at] * factor
            share = (scaled * normed).mean(-1, keepdim=True)
            dx[at] = scaled.sub_(normed.mul_(share)).mul_(inverse[at])
        return dx.view(ctx.shape), None, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, unit_offset: bool) -> Tensor:
    """RMSNorm (Zhang & Sennrich 2019) of x [..., H] times `weight` [H], or (1 + weight) with `unit_offset`.

    Statistics in fp32 at least, result in x's format; `weight` is frozen and of the same format.
    """
    y: Tensor = _RMSNorm.apply(x, weight, eps, unit_offset)  # type: ignore[no-untyped-call]
    return y


class Activation:
    """An elementwise function and its backward kernel."""

    def __init__(
        self, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self.forward = forward
        self.backward = backward
        """(gradient of the output, input) -> gradient of the input."""


SILU = Activation(F.silu, torch.ops.aten.silu_backward)
GELU_TANH = Activation(
    lambda x: F.gelu(x, approximate="tanh"),
    lambda dy, x: torch.ops.aten.gelu_backward(dy, x, approximate="tanh"),
)
GELU = Activation(F.gelu, torch.ops.aten.gelu_backward)


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: tuple[LoraWeights, LoraWeights, LoraWeights],
        act: Activation,
        active: Tensor | None,
        *masters: Tensor,
    ) -> Tensor:
        """`masters`: A and B of gate, up and down; their values are in `weights`."""
        rows = x.reshape(-1, x.shape[-1])
        gate, low_gate = forward_rows(rows, weights[0], active)
        up, low_up = forward_rows(rows, weights[1], active)
        y, low_down = forward_rows(act.forward(gate).mul_(up), weights[2], active)
        ctx.save_for_backward(rows, gate, up, low_gate, low_up, low_down)
        ctx.weights, ctx.act, ctx.active, ctx.shape = weights, act, active, x.shape
        ctx.dtypes = tuple(item.dtype for item in masters)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, low_gate, low_up, low_down = ctx.saved_tensors
        w_gate, w_up, w_down = ctx.weights
        needs_dx, active = ctx.needs_input_grad[0], ctx.active
        activated = ctx.act.forward(gate)
        d_hidden, *d_down = backward_rows(
            dy.reshape(-1, dy.shape[-1]), activated * up, low_down, w_down, None, active
        )
        assert d_hidden is not None
        dx, *d_up = backward_rows(activated.mul_(d_hidden), x, low_up, w_up, None, active, needs_dx=needs_dx)
        d_gate_out = ctx.act.backward(d_hidden.mul_(up), gate)
        dx, *d_gate = backward_rows(d_gate_out, x, low_gate, w_gate, dx, active, needs_dx=needs_dx)
        masters = (
            gradient.to(dtype) for gradient, dtype in zip((*d_gate, *d_up, *d_down), ctx.dtypes, strict=True)
        )
        return (None if dx is None else dx.view(ctx.shape), None, None, None, *masters)


def gated_mlp(
    x: Tensor,
    weights: tuple[LoraWeights, LoraWeights, LoraWeights],
    act: Activation,
    masters: tuple[Tensor, ...],
    active: Tensor | None = None,
) -> Tensor:
    """down(act(gate(x)) * up(x)) of x [..., H] (Shazeer 2020), each of the three with its adapter.

    Args:
        weights: of gate, up and down.
        masters: trained A and B of gate, up and down, six tensors; gradients go there.
        active: as `lora_linear` takes it.
    """
    y: Tensor = _GatedMLP.apply(x, weights, act, active, *masters)  # type: ignore[no-untyped-call]
    return y
