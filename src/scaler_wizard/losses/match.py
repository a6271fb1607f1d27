"""Distillation of what lies inside a teacher: hidden states through a projection, and attention maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scaler_wizard.losses.sft import LossResult

MAX_ATTENTION_TOKENS = 512
"""Attention maps are tokens x tokens: at this length a head-averaged fp32 map is 1 MB."""


def unit_rms(hidden: Tensor) -> Tensor:
    """Hidden states [..., H] divided by their root mean square, in fp32 at least."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    return wide / wide.square().mean(dim=-1, keepdim=True).clamp(min=1e-12).sqrt()


def hidden_match_loss(student: Tensor, teacher: Tensor, projection: Tensor) -> LossResult:
    """Sum over positions of the mean squared error between projected student and teacher states.

    The teacher's states are brought to a root mean square of 1 first, so that 1 is the error of predicting
    zero whatever the model, and weights of this loss carry over from teacher to teacher (FitNets, Romero et
    al. 2015, eq. 3, with a linear regressor).

    Args:
        student: [N, H]. teacher: [N, H']; no gradient goes there.
        projection: learned [H', H].
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    projected = F.linear(student.to(wide), projection.to(wide))
    errors = (projected - unit_rms(teacher.detach()).to(wide)).square().mean(dim=-1)
    return LossResult(errors.sum(), student.shape[0], {"hidden_error": errors.detach().sum()})


def initial_projection(student_width: int, teacher_width: int, seed: int) -> Tensor:
    """A projection [H', H] to start from: the identity between equal widths, else orthogonal, fp32."""
    if student_width == teacher_width:
        return torch.eye(student_width)
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.init.orthogonal_(torch.empty(teacher_width, student_width), generator=generator)


def attention_transfer_loss(
    student: Tensor, teacher: Tensor, segment_lengths: Sequence[int] | None = None
) -> LossResult:
    """Sum over query positions of KL(teacher's attention || student's), each averaged over its heads.

    MiniLM's relation loss (Wang et al. 2020, eq. 4) on head averages, so that the two may differ in heads.
    For short sequences: the maps are quadratic in T.

    Args:
        student: attention probabilities [B, heads, T, T], rows summing to 1, causal.
        teacher: [B, heads', T, T]; no gradient goes there.
        segment_lengths: packed segments (B is 1); what a row gives to other segments must be 0.
    """
    n_tokens = student.shape[-1]
    assert n_tokens <= MAX_ATTENTION_TOKENS, f"{n_tokens} tokens: attention transfer is for short sequences"
    assert student.shape[0] == teacher.shape[0]
    assert student.shape[2:] == teacher.shape[2:]
    assert segment_lengths is None or sum(segment_lengths) == n_tokens
    wide = torch.promote_types(student.dtype, torch.float32)
    ours, theirs = student.to(wide).mean(dim=1), teacher.detach().to(wide).mean(dim=1)
    # Where the teacher looks and the student cannot (rounding to 0), the loss stays finite.
    floor = torch.finfo(wide).tiny
    divergences = (torch.xlogy(theirs, theirs) - theirs * ours.clamp(min=floor).log()).sum(dim=-1)
    counted = torch.ones(n_tokens, dtype=torch.bool, device=student.device)
    # The first token of a sequence can only look at itself: it would only dilute the mean.
    starts = [0]
    for length in (segment_lengths or ())[:-1]:
        starts.append(starts[-1] + length)
    counted[starts] = False
    found = divergences[:, counted]
    return LossResult(found.sum(), found.numel(), {"attention_divergence": found.detach().sum()})
