"""The KV cache of requests that generate together: slots of one capacity, preallocated, written in place.

A slot keeps what it holds after its request has ended, until another request takes it: prompts that start
alike are copied from there instead of being read again. Knows tensors; knows no model and no schedule.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from scaler_wizard.inference.requests import Request

NEVER: Final = sys.maxsize


@dataclass(slots=True, eq=False)
class Row:
    """One request in a slot."""

    index: int
    request: Request
    tokens: list[int]
    """The prompt and what was generated."""
    prompt_length: int
    """Tokens before the first generated one."""
    read_to: int
    """Tokens that are read when the row enters its slot."""
    cache_length: int
    """KV positions needed in all."""
    cached: int = 0
    """How many of `tokens`, from the first, have keys and values in the slot."""
    adapter: str | None = None
    """The adapter (its content hash) that tokens from `adapted_from` on are read with."""
    adapted_from: int = NEVER
    active: bool = True
    slab: Slab | None = None
    """None while waiting."""
    slot: int = 0


@dataclass(slots=True, eq=False)
class Slab:
    """KV cache of `len(rows)` slots with room for `capacity` tokens each, for all layers."""

    capacity: int
    rows: list[Row | None]
    """What each slot holds: an active row, one that has ended, or nothing."""
    _layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """KV positions reserved."""
        return self.capacity * len(self.rows)

    def active_rows(self) -> list[Row]:
        """Rows that still generate, by slot."""
        return [row for row in self.rows if row is not None and row.active]

    def free_slots(self) -> list[int]:
        """Slots that another request may take."""
        return [slot for slot, row in enumerate(self.rows) if row is None or not row.active]

    def layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, [slots, key-value heads, capacity, head_dim]; made at the first use.

        key, value: [1, key-value heads, any, head_dim] of that layer, whose shape and format are taken.
        """
        if layer not in self._layers:
            # Zeros and not empty: a masked position has weight 0, and 0 times NaN would still be NaN.
            # On the CPU zeros cost no memory until they are written.
            self._layers[layer] = (self._zeros(key), self._zeros(value))
        return self._layers[layer]

    def kept(self, layer: int) -> tuple[Tensor, Tensor]:
        """What `layer` returns for a layer that has been used."""
        return self._layers[layer]

    def _zeros(self, like: Tensor) -> Tensor:
        _, heads, _, width = like.shape
        return like.new_zeros(len(self.rows), heads, self.capacity, width)

    def compact(self) -> None:
        """Move active rows from the end into free slots before them, so that active slots are the first."""
        for row, slot in zip(reversed(self.active_rows()), self.free_slots(), strict=False):
            if row.slot < slot:
                return
            _copy(self, row.slot, self, slot, row.cached)
            self.rows[row.slot], self.rows[slot] = None, row
            row.slot = slot

    def shrink(self, n_slots: int) -> None:
        """Keep only the first slots and give the memory of the others back."""
        assert not any(row is not None and row.active for row in self.rows[n_slots:])
        self.rows = self.rows[:n_slots]
        # One layer at a time, so that never more than one is held twice.
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = (keys[:n_slots].clone(), values[:n_slots].clone())


def share_prefix(source: Row, target: Row, length: int) -> None:
    """Copy the first `length` positions of one row's slot into another's; both may be the same slot."""
    assert source.slab is not None
    assert target.slab is not None
    if source.slab is not target.slab or source.slot != target.slot:
        _copy(source.slab, source.slot, target.slab, target.slot, length)
    target.cached = length


def _copy(source: Slab, source_slot: int, target: Slab, target_slot: int, length: int) -> None:
    for layer, (keys, values) in source._layers.items():
        new_keys, new_values = target.layer(layer, keys[:1], values[:1])
        new_keys[target_slot, :, :length] = keys[source_slot, :, :length]
        new_values[target_slot, :, :length] = values[source_slot, :, :length]


def shareable_length(held: Row, new: Row) -> int:
    """How many leading tokens of `new` have the same keys and values as those of `held`.

    They are the same where all tokens up to there are, and were read with the same adapter.
    """
    there = max(held.cached, min(held.read_to, len(held.tokens)))
    length = min(common_length(held.tokens, new.tokens[: new.read_to]), there)
    if (held.adapter, held.adapted_from) != (new.adapter, new.adapted_from):
        length = min(length, held.adapted_from, new.adapted_from)
    return length


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share from the first on. Both of one type: list or tuple."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low + 1 < high:
        middle = (low + high) // 2
        # Slices compare in C, and few of them are needed.
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
