"""Dividing one optimiser step among processes: pure functions over micro-batches, no communication.

Every process computes the same division from the same step, so nothing has to be sent around to agree on it.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from scaler_wizard.data.batches import IGNORED, MicroBatch, Step


class Share(NamedTuple):
    """One forward and backward pass of a process."""

    micro_batch: MicroBatch
    counted: bool
    """False for a pass that only keeps collective operations in step: its loss is multiplied by 0."""


def share_step(step: Step, n_ranks: int) -> tuple[tuple[Share, ...], ...]:
    """The passes of every rank, the same number for each; together the counted ones are the whole step.

    Packed micro-batches are cut at segment bounds while there are fewer than ranks; then the largest goes to
    the rank with the fewest tokens (longest processing time first, at most 4/3 of the best; Graham 1969).
    A rank with fewer passes repeats one of its own, or the step's first, uncounted.
    """
    assert n_ranks >= 1, n_ranks
    pieces = list(step.micro_batches)
    while len(pieces) < n_ranks:
        at = max(
            range(len(pieces)), key=lambda i: (len(pieces[i].segment_lengths) > 1, pieces[i].n_tokens, -i)
        )
        if len(pieces[at].segment_lengths) == 1:
            break
        pieces[at : at + 1] = split_micro_batch(pieces[at])
    of_rank: list[list[int]] = [[] for _ in range(n_ranks)]
    tokens = [0] * n_ranks
    for index in sorted(range(len(pieces)), key=lambda i: (-pieces[i].n_tokens, i)):
        rank = min(range(n_ranks), key=lambda r: (tokens[r], r))
        of_rank[rank].append(index)
        tokens[rank] += pieces[index].n_tokens
    passes = max(len(indices) for indices in of_rank)
    return tuple(
        tuple(Share(pieces[index], True) for index in sorted(indices))
        + (Share(pieces[min(indices, default=0)], False),) * (passes - len(indices))
        for indices in of_rank
    )


def split_micro_batch(micro: MicroBatch) -> tuple[MicroBatch, MicroBatch]:
    """Two micro-batches of the same segments, cut at the segment bound nearest the middle."""
    bounds = list(accumulate(micro.segment_lengths))[:-1]
    assert bounds, "one segment cannot be cut"
    cut = min(range(len(bounds)), key=lambda i: abs(2 * bounds[i] - micro.n_tokens)) + 1
    return _part(micro, 0, cut), _part(micro, cut, len(micro.segment_lengths))


def _part(micro: MicroBatch, first: int, last: int) -> MicroBatch:
    """Segments [first, last)."""
    bounds = micro.cu_seqlens[first : last + 1]
    tokens = slice(int(bounds[0]), int(bounds[-1]))
    labels = micro.labels[:, tokens]
    return MicroBatch(
        input_ids=micro.input_ids[:, tokens],
        position_ids=micro.position_ids[:, tokens],
        labels=labels,
        segment_lengths=micro.segment_lengths[first:last],
        cu_seqlens=bounds - bounds[0],
        n_labels=int((labels[:, 1:] != IGNORED).sum()),
        active=None if micro.active is None else micro.active[:, tokens],
        visual=None if micro.visual is None else micro.visual.part(tokens),
    )
