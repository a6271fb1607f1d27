"""Liger's fused linear cross-entropy (Hsu et al. 2024) where it is installed and applies: on a GPU.

The same sums as `losses.sft` computes in torch: softmax, loss and gradient of a chunk in one Triton kernel.
Written by liger-kernel 0.8.5's source; a test marked `gpu` compares the two. Speed unmeasured: no GPU was at
hand.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def liger_installed() -> bool:
    """Whether liger-kernel and the Triton it is written in can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("liger_kernel", "triton"))


def can_use_liger(hidden: Tensor, scale: float) -> bool:
    """Liger knows a soft cap and a bias, but no factor on the logits."""
    return hidden.device.type == "cuda" and scale == 1.0 and hidden.shape[0] > 0 and liger_installed()


def liger_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of cross-entropies [] (differentiable, fp32) and the number of right predictions [].

    Args:
        hidden: final hidden states at the targets [N, H], on a GPU. targets: token ids [N].
        weight, bias, softcap: the LM head's, [V, H] and [V].
    """
    # Gradients of a frozen head are not computed: the kernel looks at weight.requires_grad.
    output = _fused(softcap)(weight, hidden, targets, bias)
    return output.loss, (output.predicted_tokens == targets).sum()


@cache
def _fused(softcap: float | None) -> Any:
    # The package imports Triton, which a machine without a GPU lacks.
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(
        reduction="sum", softcap=softcap, accum_dtype=torch.float32, return_predicted_tokens=True
    )
