"""One row of data, and what becomes of a row that cannot be used.

Knows nothing of file types, row formats or torch.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from scaler_wizard.errors import DataFileMissingError, RowError

MAX_ROW_BYTES = 16 << 20
MAX_KEPT_REASONS = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file.

    `number` is the 1-based line it starts on (JSON Lines, CSV, text) or its 1-based position (JSON, Parquet).
    """

    number: int
    value: dict[str, Any]


@dataclass(slots=True)
class BadRows:
    """What to do with a row that cannot be used: "stop" raises, "quarantine" sets aside and counts."""

    policy: Literal["stop", "quarantine"] = "stop"
    count: int = 0
    reasons: list[tuple[int, str]] = field(default_factory=list)
    """(row number, reason) of the first `MAX_KEPT_REASONS` rows set aside."""

    def add(self, number: int, error: RowError) -> None:
        """Raise `error`, or keep its number and reason, as the policy says."""
        if self.policy == "stop":
            raise error
        self.count += 1
        if len(self.reasons) < MAX_KEPT_REASONS:
            self.reasons.append((number, error.found))

    def first(self) -> str:
        """The first reason in words, for an error about a file without one usable row."""
        return f"{self.count:,} rows were set aside; the first: {self.reasons[0][1]}" if self.reasons else ""


def row_error(path: Path | str, number: int, reason: str, expected: str = "", todo: str = "") -> RowError:
    """A RowError that names file, row and reason."""
    return RowError(
        f"{path}, row {number}: {reason}", expected, todo or "mend the row, or set bad_rows: quarantine"
    )


def open_file(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataFileMissingError(
            f"{path} cannot be opened ({error.strerror})", "a readable file", "check its permissions"
        ) from None


def lines_of(path: Path, bad: BadRows) -> Iterator[tuple[int, bytes]]:
    """(number, line without its end) of a file; a line beyond 16 MB is a bad row and is skipped unread."""
    with open_file(path) as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) > MAX_ROW_BYTES:
                bad.add(number, row_error(path, number, "longer than 16 MB", "rows of at most 16 MB"))
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW_BYTES)
                continue
            yield number, line.rstrip(b"\r\n")
