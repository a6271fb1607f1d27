"""Log-probabilities of whole answers: what preference objectives compare. Chunked like every loss here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scaler_wizard.losses.chunked import at_targets, linear_rows
from scaler_wizard.losses.sft import IGNORED, Head


class SequenceLogProbs(NamedTuple):
    """Of S sequences: packed segments, or padded rows."""

    log_probs: Tensor
    """Sums of log p over each sequence's targets [S], nats, fp32 (fp64 for fp64 input); differentiable."""
    n_targets: Tensor
    """Targets of each sequence [S], int64."""


def target_log_probs(hidden: Tensor, head: Head, targets: Tensor, *, chunk_rows: int | None = None) -> Tensor:
    """log p(targets[n] | hidden[n]) [N], nats; hidden [N, H], targets [N]."""

    def row_loss(logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
        at = targets[start : start + logits.shape[0], None]
        log_probs = logits.log_softmax(dim=-1)
        # d log p(t) / d logits = one-hot(t) - softmax
        slope = log_probs.exp().neg_()
        slope.scatter_add_(1, at, torch.ones_like(at, dtype=slope.dtype))
        return log_probs.gather(1, at)[:, 0], slope

    return linear_rows(hidden, head, row_loss, chunk_rows=chunk_rows)


def sequence_log_probs(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    segment_lengths: Sequence[int] | None = None,
    *,
    chunk_rows: int | None = None,
) -> SequenceLogProbs:
    """Summed log-probability of every sequence's targets.

    Args:
        hidden: final hidden states [B, T, H].
        labels: [B, T], unshifted, -100 for prompt and padding; the first of every segment must be -100.
        segment_lengths: tokens of each packed segment (B is 1, their sum is T); one sequence a row when None.
    """
    sequences = _sequence_of(labels, segment_lengths)
    n_sequences = labels.shape[0] if segment_lengths is None else len(segment_lengths)
    gathered, targets = at_targets(hidden, labels)
    owner = sequences[:, 1:][labels[:, 1:] != IGNORED]
    found = target_log_probs(gathered, head, targets, chunk_rows=chunk_rows)
    sums = torch.zeros(n_sequences, dtype=found.dtype, device=found.device).index_add(0, owner, found)
    return SequenceLogProbs(sums, torch.bincount(owner, minlength=n_sequences))


def _sequence_of(labels: Tensor, segment_lengths: Sequence[int] | None) -> Tensor:
    """Number of the sequence that each position belongs to [B, T]."""
    if segment_lengths is None:
        return torch.arange(labels.shape[0], device=labels.device)[:, None].expand_as(labels)
    assert labels.shape == (1, sum(segment_lengths)), (labels.shape, segment_lengths)
    lengths = torch.tensor(segment_lengths, device=labels.device)
    return torch.arange(len(segment_lengths), device=labels.device).repeat_interleave(lengths)[None]


class PairScores(NamedTuple):
    """What the policy, and where there is one the reference, gives the two answers of P pairs."""

    policy: Tensor
    """Summed log-probabilities [P, 2]: chosen, rejected."""
    n_targets: Tensor
    """Tokens of the answers [P, 2]."""
    reference: Tensor | None = None
    """Summed log-probabilities under the frozen reference [P, 2]; no gradient goes there."""


def pair_scores(policy: SequenceLogProbs, reference: Tensor | None = None) -> PairScores:
    """Scores of sequences that come as chosen, rejected, chosen, rejected, ...

    Args:
        reference: the same sequences' summed log-probabilities [2 P] under the reference.
    """
    assert len(policy.log_probs) % 2 == 0, "a pair was torn apart"
    given = None if reference is None else reference.detach().view(-1, 2)
    return PairScores(policy.log_probs.view(-1, 2), policy.n_targets.view(-1, 2), given)
