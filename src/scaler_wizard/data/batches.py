"""Token rows to optimiser steps: which rows, in which micro-batches, as tensors.

Rows are packed without padding and without contamination: every row is its own segment with positions from
0, and the first token of a segment has no label. Step i is a pure function of (rows, seed, i), so that
"where was I" is one integer. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.visual_tokens import VisualTokens
from scaler_wizard.errors import EmptyDataError

IGNORED = -100


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass: segments one after another on a single axis of T tokens."""

    input_ids: Tensor
    """Token ids [1, T], int64."""
    position_ids: Tensor
    """Positions [1, T], int64, from 0 in every segment."""
    labels: Tensor
    """The token's own id where it is a target, else -100 [1, T], int64; unshifted, as transformers has it."""
    segment_lengths: tuple[int, ...]
    """Tokens of each segment; their sum is T."""
    cu_seqlens: Tensor
    """Segment bounds [segments + 1], int32: 0, ..., T."""
    n_labels: int
    """Targets, counted after the shift."""
    active: Tensor | None = None
    """On which tokens an activated adapter acts [1, T], bool; None where no row invokes one."""
    visual: VisualTokens | None = None
    """Pictures among the tokens, whose positions count instead of `position_ids`; None without any."""

    @property
    def n_tokens(self) -> int:
        """T; all of them real, nothing is padded."""
        return sum(self.segment_lengths)

    def to(self, device: torch.device) -> Self:
        """The same micro-batch on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "position_ids", "labels", "cu_seqlens", "active", "visual")
            if getattr(self, name) is not None
        }
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True, slots=True)
class Step:
    """The micro-batches of one optimiser step."""

    micro_batches: tuple[MicroBatch, ...]

    @property
    def n_tokens(self) -> int:
        """Real tokens of the step."""
        return sum(micro.n_tokens for micro in self.micro_batches)

    @property
    def n_labels(self) -> int:
        """Targets of the step: the divisor of its loss."""
        return sum(micro.n_labels for micro in self.micro_batches)


class Steps(Protocol):
    """What a training loop needs of batches."""

    def step(self, index: int) -> Step:
        """The micro-batches of step `index` (from 0)."""


def collate(rows: Iterable[TokenRow]) -> MicroBatch:
    """Concatenate rows into one micro-batch."""
    chosen = list(rows)
    lengths = tuple(len(row.ids) for row in chosen)
    ids = np.concatenate([row.ids for row in chosen]).astype(np.int64)
    trained = np.concatenate([row.trained for row in chosen])
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    trained[bounds[:-1]] = False
    labels = np.where(trained, ids, IGNORED)
    positions = np.arange(len(ids)) - np.repeat(bounds[:-1], lengths)
    return MicroBatch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        labels=torch.from_numpy(labels)[None],
        segment_lengths=lengths,
        cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
        n_labels=int(trained.sum()),
        active=_active_tokens(chosen),
    )


def _active_tokens(rows: Sequence[TokenRow]) -> Tensor | None:
    """`MicroBatch.active` of packed rows."""
    if all(row.active_from is None for row in rows):
        return None
    marks = [
        np.arange(len(row.ids)) >= (len(row.ids) if row.active_from is None else row.active_from)
        for row in rows
    ]
    return torch.from_numpy(np.concatenate(marks))[None]


Collate = Callable[[Iterable[TokenRow]], MicroBatch]
"""Rows to one forward pass."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit-decreasing bin packing: indices of each bin, whose lengths sum to at most `capacity`.

    At most 11/9 of the fewest bins possible, plus one (Johnson 1973). Every length must fit a bin.
    """
    bins: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        assert lengths[index] <= capacity, (lengths[index], capacity)
        home = next((at for at, space in enumerate(free) if space >= lengths[index]), len(bins))
        if home == len(bins):
            bins.append([])
            free.append(capacity)
        bins[home].append(index)
        free[home] -= lengths[index]
    return bins


class _Stream:
    """Rows repeated epoch after epoch, each epoch in its own order, as one endless line of tokens."""

    def __init__(self, rows: Sequence[TokenRow], seed: int, name: str) -> None:
        self._rows, self._seed, self._name = rows, seed, name
        usable = [(at, len(row.ids)) for at, row in enumerate(rows) if row.n_labels]
        self._indices = np.array([at for at, _ in usable], dtype=np.int64)
        self._lengths = np.array([length for _, length in usable], dtype=np.int64)
        self._orders: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
        self.n_rows = len(usable)
        self.tokens = int(self._lengths.sum())
        self.longest = int(self._lengths.max(initial=0))

    def take(self, start: int, end: int) -> list[TokenRow]:
        """Rows whose middle token lies in [start, end) of the endless line.

        Taken over consecutive intervals that is every row of every epoch exactly once, in pieces of
        end - start tokens give or take half a row at either side.
        """
        taken: list[TokenRow] = []
        for epoch in range(start // self.tokens, (end - 1) // self.tokens + 1):
            order, middles = self._order(epoch)
            low, high = np.searchsorted(middles, [start - epoch * self.tokens, end - epoch * self.tokens])
            taken += [self._rows[int(at)] for at in order[low:high]]
        return taken

    def _order(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(row indices, position of each row's middle token) in the order of one epoch."""
        if epoch not in self._orders:
            digest = hashlib.blake2b(f"{self._seed}/{self._name}/{epoch}".encode(), digest_size=4).digest()
            # RandomState, not Generator: its streams are frozen (NEP 19), and a resumed run needs that.
            shuffled = np.random.RandomState(int.from_bytes(digest, "big")).permutation(self.n_rows)
            lengths = self._lengths[shuffled]
            if len(self._orders) > 2:
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = self._indices[shuffled], np.cumsum(lengths) - (lengths + 1) // 2
        return self._orders[epoch]


class Batches:
    """The steps of a training, by number.

    Args:
        rows: token rows; those without a label are left out (`TokenReport` has counted them).
        context: most tokens of a row; more is a programming error, because nothing is cut here.
        batch_tokens: tokens of one step, on average and give or take a row; at least the longest row's.
        micro_batch_tokens: most tokens of one forward pass; at least the longest row's. It changes how a
            step's rows are packed, never which rows they are.
        seed: decides the order of the rows in each epoch.
        text_rows: plain text replayed so that old skills stay.
        replay_fraction: share of the step's tokens that is taken from `text_rows`, where there are any.
        collate: makes a forward pass of rows; a `PictureCollate` where rows have pictures.
        packed: False gives every row its own forward pass (for prefix tuning, which cannot be packed).

    Raises:
        EmptyDataError: not one row with a label.
    """

    def __init__(
        self,
        rows: Sequence[TokenRow],
        *,
        context: int,
        batch_tokens: int,
        micro_batch_tokens: int,
        seed: int,
        text_rows: Sequence[TokenRow] = (),
        replay_fraction: float = 0.0,
        packed: bool = True,
        collate: Collate = collate,
    ) -> None:
        assert 0 <= replay_fraction < 1, replay_fraction
        self._rows = _Stream(rows, seed, "rows")
        self._text = _Stream(text_rows, seed, "text")
        if not self._rows.n_rows:
            raise EmptyDataError(
                f"none of {len(rows)} rows has a token to train",
                "answers within the context",
                "check the rows",
            )
        longest = max(self._rows.longest, self._text.longest)
        assert longest <= context, f"a row of {longest} tokens in a context of {context}"
        share = replay_fraction if self._text.n_rows else 0.0
        # No step may come up empty, so a step holds at least the longest row.
        self._row_tokens = max(round(batch_tokens * (1 - share)), self._rows.longest)
        self._text_tokens = round(self._row_tokens * share / (1 - share))
        self._packed, self._collate = packed, collate
        self.micro_batch_tokens = max(micro_batch_tokens, longest)
        self.batch_tokens = self._row_tokens + self._text_tokens

    def __len__(self) -> int:
        """Steps of one pass over the rows."""
        return self.steps_for(1.0)

    def steps_for(self, epochs: float) -> int:
        """Steps of so many passes over the rows, at least 1."""
        return max(1, math.ceil(epochs * self._rows.tokens / self._row_tokens))

    def with_micro_batch_tokens(self, micro_batch_tokens: int) -> Batches:
        """The same steps in larger or smaller forward passes: what is left to do when memory ran out."""
        other = object.__new__(Batches)
        other.__dict__.update(self.__dict__)
        other.micro_batch_tokens = max(micro_batch_tokens, self.longest)
        return other

    @property
    def longest(self) -> int:
        """Tokens of the longest row: no forward pass can be smaller for certain."""
        return max(self._rows.longest, self._text.longest)

    def rows_of(self, index: int) -> list[TokenRow]:
        """The rows of step `index` (from 0), the replayed ones last."""
        rows = self._rows.take(index * self._row_tokens, (index + 1) * self._row_tokens)
        if self._text_tokens:
            rows += self._text.take(index * self._text_tokens, (index + 1) * self._text_tokens)
        return rows

    def step(self, index: int) -> Step:
        """The micro-batches of step `index` (from 0)."""
        assert index >= 0, index
        rows = self.rows_of(index)
        if self._packed:
            bins = pack([len(row.ids) for row in rows], self.micro_batch_tokens)
        else:
            bins = [[at] for at in range(len(rows))]
        return Step(tuple(self._collate(rows[at] for at in members) for members in bins))
