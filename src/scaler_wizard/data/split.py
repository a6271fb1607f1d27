"""A deterministic held-out split by the hash of each row's content.

Knows nothing of formats. A row's side depends on its content and the seed alone: duplicates land on one
side, and a file that grows keeps every earlier row where it was.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scaler_wizard.data.rows import Row
from scaler_wizard.errors import EmptyDataError


@dataclass(frozen=True, slots=True)
class RowSplit:
    """Rows to train on and rows only to measure with, each in file order."""

    train: tuple[Row, ...]
    held_out: tuple[Row, ...]


def row_position(row: Row, seed: int) -> float:
    """A number in [0, 1), uniform over contents: the first 8 bytes of BLAKE2b of (seed, content)."""
    content = json.dumps(row.value, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.blake2b(f"{seed}\n{content}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_rows(rows: Iterable[Row], holdout_fraction: float, seed: int = 0) -> RowSplit:
    """Hold out the rows whose position is below `holdout_fraction`.

    Where that leaves one side empty (few rows), the content nearest to the other side moves over.

    Raises:
        EmptyDataError: fewer than two different rows.
    """
    placed = [(row_position(row, seed), row) for row in rows]
    positions = sorted({position for position, _ in placed})
    if len(positions) < 2:
        raise EmptyDataError(
            f"{len(placed)} rows with {len(positions)} different contents",
            "at least two different rows, one of them to measure with",
            "add rows",
        )
    threshold = holdout_threshold(positions, holdout_fraction)
    return RowSplit(
        train=tuple(row for position, row in placed if position >= threshold),
        held_out=tuple(row for position, row in placed if position < threshold),
    )


def holdout_threshold(positions: Sequence[float], holdout_fraction: float) -> float:
    """The position below which a row is held out, so that neither side is empty.

    Args:
        positions: different ones, rising. With fewer than two nothing can be held out: 0.
    """
    if len(positions) < 2:
        return 0.0
    return positions[min(max(bisect_left(positions, holdout_fraction), 1), len(positions) - 1)]


def split_share(rows: Iterable[Row], holdout_fraction: float, seed: int = 0) -> RowSplit:
    """Hold out that share of the rows, to within one row, chosen by content.

    For texts cut into a few dozen pieces, where `split_rows` may by chance hold out one or half of them; what
    a piece's side is then depends on the other pieces too.

    Raises:
        EmptyDataError: fewer than two different rows.
    """
    placed = sorted(((row_position(row, seed), row.number, row) for row in rows), key=lambda item: item[:2])
    wanted = max(1, round(holdout_fraction * len(placed)))
    threshold = placed[min(wanted, len(placed)) - 1][0] if placed else 0.0
    held_out = [row for position, _, row in placed if position <= threshold]
    train = [row for position, _, row in placed if position > threshold]
    if not held_out or not train:
        return split_rows([row for _, _, row in placed], holdout_fraction, seed)
    return RowSplit(
        train=tuple(sorted(train, key=lambda row: row.number)),
        held_out=tuple(sorted(held_out, key=lambda row: row.number)),
    )
