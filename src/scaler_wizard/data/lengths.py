"""How long rows are: counts by length in bounded memory, and percentiles from them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

EXACT_UP_TO = 4096
PERCENTILES = (50, 90, 95, 99)
BARS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072, 1 << 40)

Unit = Literal["tokens", "characters"]


@dataclass(frozen=True, slots=True)
class LengthSummary:
    """Percentiles are exact up to 4,096 and at most 1% too high beyond."""

    unit: Unit
    rows: int
    total: int
    percentiles: dict[int, int]
    """{50: median, 90: ..., 95: ..., 99: ...}; nearest rank."""
    longest: int
    max_length: int | None
    longer: int
    """Rows longer than `max_length`."""
    bars: tuple[tuple[int, int], ...]
    """(most length, rows) for each bin of a histogram that is not empty."""

    def as_dict(self) -> dict[str, object]:
        """JSON-ready fields."""
        return {
            "unit": self.unit, "rows": self.rows, "total": self.total, "longest": self.longest,
            **{f"p{share}": value for share, value in self.percentiles.items()},
            "max_length": self.max_length, "longer": self.longer,
            "histogram": [{"most": most, "rows": rows} for most, rows in self.bars],
        }  # fmt: skip


@dataclass(slots=True)
class Lengths:
    """Collects lengths: at most about 6,000 different counts however long rows are."""

    unit: Unit
    max_length: int | None = None
    longest: int = 0
    longer: int = 0
    total: int = 0
    _counts: Counter[int] = field(default_factory=Counter)
    _bars: Counter[int] = field(default_factory=Counter)

    def add(self, length: int) -> bool:
        """Count one row; whether it is longer than `max_length`."""
        self.total += length
        self.longest = max(self.longest, length)
        self._counts[_rounded(length)] += 1
        self._bars[next(most for most in BARS if length <= most)] += 1
        is_longer = self.max_length is not None and length > self.max_length
        self.longer += is_longer
        return is_longer

    def summary(self) -> LengthSummary | None:
        """None without a row."""
        rows = self._counts.total()
        if not rows:
            return None
        found: dict[int, int] = {}
        seen, wanted = 0, list(PERCENTILES)
        for length in sorted(self._counts):
            seen += self._counts[length]
            while wanted and seen * 100 >= wanted[0] * rows:
                found[wanted.pop(0)] = min(length, self.longest)
        bars = tuple((most, self._bars[most]) for most in BARS if self._bars[most])
        return LengthSummary(
            self.unit, rows, self.total, found, self.longest, self.max_length, self.longer, bars
        )


def _rounded(length: int) -> int:
    """Up to the next power of 1.01 beyond `EXACT_UP_TO`."""
    if length <= EXACT_UP_TO:
        return length
    return math.ceil(1.01 ** math.ceil(math.log(length, 1.01)))
