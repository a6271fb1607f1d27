"""What token rows say of pictures: features in the place of placeholders, positions on three axes.

Tensors that somebody made with a vision tower; knows no model and no picture. Rows stay `TokenRow`s, whose
number finds their pictures, so that all that is done with rows (marks, packing, order) knows nothing of this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RowPictures:
    """The pictures of one row of n tokens, V of them visual."""

    visual: Tensor
    """[n] bool."""
    positions: Tensor
    """Rotary positions [3, n], int64: time, height, width."""
    embeds: tuple[Tensor, ...]
    """Of each picture, in order: [its tokens, h]; V in all."""
    deepstack: tuple[tuple[Tensor, ...], ...]
    """Of each picture, for each level: [its tokens, h]."""


@dataclass(frozen=True, slots=True, eq=False)
class VisualTokens:
    """The visual tokens of a packed micro-batch of T tokens, V of them visual."""

    mask: Tensor
    """[1, T] bool."""
    positions: Tensor
    """Rotary positions of all tokens [3, 1, T], int64; from 0 in every segment."""
    embeds: Tensor
    """[V, h]."""
    deepstack: tuple[Tensor, ...]
    """[V, h] for each level: added after the first, second, ... decoder layer."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> VisualTokens:
        """The same on a device."""
        mask, positions, embeds, *levels = (
            tensor.to(device, non_blocking=non_blocking)
            for tensor in (self.mask, self.positions, self.embeds, *self.deepstack)
        )
        return VisualTokens(mask, positions, embeds, tuple(levels))

    def part(self, tokens: slice) -> VisualTokens:
        """Those of the tokens `start` to `stop`."""
        first = int(self.mask[0, : tokens.start].sum())
        there = slice(first, first + int(self.mask[0, tokens].sum()))
        return VisualTokens(
            self.mask[:, tokens],
            self.positions[:, :, tokens],
            self.embeds[there],
            tuple(level[there] for level in self.deepstack),
        )
