"""A router's training rows as steps of the training loop: contents, a suffix behind them, the right label."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scaler_wizard.data.batches import MicroBatch, Step
from scaler_wizard.data.picture_batches import PictureCollate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.visual_tokens import RowPictures
from scaler_wizard.inference.experts.prompt import EmbeddedPrompt, Prompt


@dataclass(frozen=True, slots=True)
class RouterRow:
    """One content and the place of its expert among the router's labels."""

    prompt: Prompt
    label: int


@dataclass(frozen=True, slots=True)
class RouterBatch(MicroBatch):
    """A packed forward pass over contents; its targets are labels, one a segment, and no tokens."""

    targets: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Labels [segments], int64."""


def router_batch(rows: Sequence[RouterRow], suffix: Sequence[int]) -> RouterBatch:
    """Rows packed one after the other, each with the suffix behind it; an adapter is active on the suffix."""
    pictures = {
        number: _pictures(row.prompt.embedded, len(suffix))
        for number, row in enumerate(rows)
        if row.prompt.embedded is not None
    }
    packed = PictureCollate(pictures)(_token_row(number, row, suffix) for number, row in enumerate(rows))
    fields = {field.name: getattr(packed, field.name) for field in dataclasses.fields(packed)}
    targets = torch.tensor([row.label for row in rows])
    return RouterBatch(**{**fields, "n_labels": len(rows)}, targets=targets)


def _token_row(number: int, row: RouterRow, suffix: Sequence[int]) -> TokenRow:
    # A visual token's id is negative: it stands for its image and has no embedding.
    ids = np.maximum(np.array([*row.prompt.tokens, *suffix], dtype=np.int64), 0).astype(np.int32)
    active_from = len(row.prompt.tokens) if suffix else None
    return TokenRow(number, ids, np.zeros(len(ids), np.bool_), active_from)


def _pictures(content: EmbeddedPrompt, n_suffix: int) -> RowPictures:
    """The pictures of one content with a suffix of text behind it."""
    following = torch.arange(content.next_position, content.next_position + n_suffix).expand(3, -1)
    visual = content.visual.cpu()
    return RowPictures(
        torch.cat([visual, torch.zeros(n_suffix, dtype=torch.bool)]),
        torch.cat([content.positions.cpu(), following], dim=1),
        (content.embeds[content.visual],),
        (content.deepstack,),
    )


class RouterSteps:
    """The steps of a router's training, by number: every row once an epoch, each epoch in its own order."""

    def __init__(
        self, rows: Sequence[RouterRow], suffix: Sequence[int], *, batch_rows: int, step_rows: int, seed: int
    ) -> None:
        self._rows, self._suffix, self._seed = tuple(rows), tuple(suffix), seed
        self._batch_rows, self._step_rows = batch_rows, min(step_rows, len(self._rows))

    def step(self, index: int) -> Step:
        """The micro-batches of step `index` (from 0)."""
        first = index * self._step_rows
        chosen = [self._row(number) for number in range(first, first + self._step_rows)]
        return Step(tuple(router_batch(part, self._suffix) for part in batched(chosen, self._batch_rows)))

    def _row(self, number: int) -> RouterRow:
        epoch, at = divmod(number, len(self._rows))
        return self._rows[self._order(epoch)[at]]

    def _order(self, epoch: int) -> list[int]:
        digest = hashlib.blake2b(f"{self._seed}/router/{epoch}".encode(), digest_size=4).digest()
        # RandomState, not Generator: its streams are frozen (NEP 19).
        order: list[int] = (
            np.random.RandomState(int.from_bytes(digest, "big")).permutation(len(self._rows)).tolist()
        )
        return order


def batched(rows: Sequence[RouterRow], size: int) -> list[Sequence[RouterRow]]:
    """Pieces of `size` rows, the last perhaps shorter."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]
