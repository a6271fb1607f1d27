"""Rows with pictures to forward passes: `batches.collate`, and the pictures found by the rows' numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from scaler_wizard.data.batches import MicroBatch, collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.visual_tokens import RowPictures, VisualTokens


@dataclass(frozen=True, slots=True, eq=False)
class PictureCollate:
    """`batches.collate` for rows with pictures and rows without, by the numbers of their data rows."""

    pictures: Mapping[int, RowPictures]

    def __call__(self, rows: Iterable[TokenRow]) -> MicroBatch:
        """Concatenate rows into one micro-batch; `visual` is None where no row has a picture."""
        chosen = list(rows)
        micro = collate(chosen)
        found = [self.pictures.get(row.number) for row in chosen]
        seen = [one for one in found if one is not None]
        if not seen:
            return micro
        masks, positions = [], []
        for row, one in zip(chosen, found, strict=True):
            n_tokens = len(row.ids)
            # A row that was cut would have another row's pictures.
            assert one is None or len(one.visual) == n_tokens, (len(row.ids), row.number)
            masks.append(torch.zeros(n_tokens, dtype=torch.bool) if one is None else one.visual)
            positions.append(torch.arange(n_tokens).expand(3, -1) if one is None else one.positions)
        levels = zip(*(level for one in seen for level in one.deepstack), strict=True)
        return replace(
            micro,
            visual=VisualTokens(
                torch.cat(masks)[None],
                torch.cat(positions, dim=1)[:, None],
                torch.cat([part for one in seen for part in one.embeds]),
                tuple(torch.cat(level) for level in levels),
            ),
        )
