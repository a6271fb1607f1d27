"""Preference pairs to optimiser steps: chosen and rejected answers side by side, anchor rows beside them.

A pair is never torn apart: both of its rows go through one forward pass. Anchors are ordinary rows that hold
the model to what it does well already. Step i is a pure function of (pairs, anchors, seed, i).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaler_wizard.data.batches import MicroBatch, Step, collate, pack
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.errors import EmptyDataError


@dataclass(frozen=True, slots=True, eq=False)
class TokenPair:
    """Two answers to one prompt, as token rows whose answers are trained."""

    chosen: TokenRow
    rejected: TokenRow

    @property
    def rows(self) -> tuple[TokenRow, TokenRow]:
        """In the order that every batch has them."""
        return self.chosen, self.rejected


@dataclass(frozen=True, slots=True)
class PairMicroBatch(MicroBatch):
    """Segments: chosen, rejected, chosen, rejected, ..., then anchors. `n_labels` counts pairs."""

    numbers: tuple[int, ...] = ()
    """Which pairs these are: places in the pairs that the batches were made of."""

    @property
    def n_pairs(self) -> int:
        """Pairs of this pass."""
        return len(self.numbers)


def collate_pairs(pairs: Sequence[tuple[int, TokenPair]], anchors: Sequence[TokenRow] = ()) -> PairMicroBatch:
    """One forward pass over (number, pair) and anchors."""
    rows = [row for _, pair in pairs for row in pair.rows]
    micro = collate([*rows, *anchors])
    fields = {field.name: getattr(micro, field.name) for field in dataclasses.fields(MicroBatch)}
    return PairMicroBatch(**{**fields, "n_labels": len(pairs)}, numbers=tuple(number for number, _ in pairs))


class PairBatches:
    """The steps of a preference training, by number.

    Args:
        pairs: both answers within the context.
        anchors: rows that are fine-tuned on beside the pairs; may be empty.
        pairs_per_step: pairs of one step.
        anchors_per_pair: anchor rows for each of them, where there are any.
        micro_batch_tokens: most tokens of one forward pass; at least the longest pair's. It changes how a
            step is packed, never what is in it.
        seed: decides the order in each epoch.

    Raises:
        EmptyDataError: not one pair with a token to train in both answers.
    """

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        anchors: Sequence[TokenRow],
        *,
        pairs_per_step: int,
        anchors_per_pair: float,
        micro_batch_tokens: int,
        seed: int,
    ) -> None:
        if not pairs or not all(row.n_labels for pair in pairs for row in pair.rows):
            raise EmptyDataError(
                f"none of {len(pairs)} preference pairs can be trained"
                if not pairs
                else "a pair with an answer of no token",
                "at least one pair of two different answers",
                "make more answers, or look at the critic's reasons in the records",
            )
        assert pairs_per_step >= 1, pairs_per_step
        self.pairs = tuple(pairs)
        self._anchors = tuple(row for row in anchors if row.n_labels)
        self._seed = seed
        self._pairs_per_step = min(pairs_per_step, len(pairs))
        self._anchors_per_step = (
            max(1, round(self._pairs_per_step * anchors_per_pair))
            if self._anchors and anchors_per_pair
            else 0
        )
        self.longest = max(
            [*(sum(len(row.ids) for row in pair.rows) for pair in pairs), *map(_length, self._anchors)]
        )
        self.micro_batch_tokens = max(micro_batch_tokens, self.longest)
        mean_pair = sum(sum(map(_length, pair.rows)) for pair in pairs) / len(pairs)
        mean_anchor = sum(map(_length, self._anchors)) / max(1, len(self._anchors))
        self.batch_tokens = math.ceil(self._pairs_per_step * mean_pair + self._anchors_per_step * mean_anchor)
        """Tokens of a step, on average."""

    def steps_for(self, epochs: float) -> int:
        """Steps of so many passes over the pairs, at least 1."""
        return max(1, math.ceil(epochs * len(self.pairs) / self._pairs_per_step))

    def with_micro_batch_tokens(self, micro_batch_tokens: int) -> PairBatches:
        """The same steps in larger or smaller forward passes."""
        other = object.__new__(PairBatches)
        other.__dict__.update(self.__dict__)
        other.micro_batch_tokens = max(micro_batch_tokens, self.longest)
        return other

    def numbers_of(self, index: int) -> list[int]:
        """The pairs of step `index` (from 0)."""
        start = index * self._pairs_per_step
        return self._take("pairs", len(self.pairs), start, start + self._pairs_per_step)

    def rows_of(self, index: int) -> list[TokenRow]:
        """Every row of step `index`, the anchors last."""
        rows = [row for number in self.numbers_of(index) for row in self.pairs[number].rows]
        return [*rows, *self._anchors_of(index)]

    def step(self, index: int) -> Step:
        """The micro-batches of step `index` (from 0); a pass of anchors alone has no pair."""
        assert index >= 0, index
        numbers, anchors = self.numbers_of(index), self._anchors_of(index)
        lengths = [sum(map(_length, self.pairs[number].rows)) for number in numbers]
        lengths += [_length(row) for row in anchors]
        passes = []
        for members in pack(lengths, self.micro_batch_tokens):
            chosen = [numbers[at] for at in members if at < len(numbers)]
            beside = [anchors[at - len(numbers)] for at in members if at >= len(numbers)]
            passes.append(collate_pairs([(number, self.pairs[number]) for number in chosen], beside))
        return Step(tuple(passes))

    def _anchors_of(self, index: int) -> list[TokenRow]:
        start = index * self._anchors_per_step
        places = self._take("anchors", len(self._anchors), start, start + self._anchors_per_step)
        return [self._anchors[at] for at in places]

    def _take(self, name: str, n: int, start: int, end: int) -> list[int]:
        """Places start..end of the endless line of `n` things, epoch after epoch in an order of its own."""
        return [int(self._order(name, n, at // n)[at % n]) for at in range(start, end)]

    def _order(self, name: str, n: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        digest = hashlib.blake2b(f"{self._seed}/{name}/{epoch}".encode(), digest_size=4).digest()
        # RandomState, not Generator: its streams are frozen (NEP 19), and a resumed run needs that.
        return np.random.RandomState(int.from_bytes(digest, "big")).permutation(n)


def _length(row: TokenRow) -> int:
    return len(row.ids)
