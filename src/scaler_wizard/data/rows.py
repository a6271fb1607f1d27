"""One row of data, and what becomes of a row that cannot be used.

Knows nothing of file types, row formats or torch.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from scaler_wizard.errors import DataFileMissingError, RowError

# Two million tokens. A parsed row costs up to ten times its bytes, and validation promises to stay under
# 200 MB of memory whatever it is given.
MAX_ROW_BYTES = 8 << 20
MAX_KEPT_REASONS = 1000
KEPT_RAW_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file.

    `number` is the 1-based line it starts on (JSON Lines, CSV, text) or its 1-based position (JSON, Parquet).
    """

    number: int
    value: dict[str, Any]

    def raw_text(self) -> bytes:
        """The row as JSON, for a quarantine: what was parsed has no bytes of its own any more."""
        text = json.dumps(self.value, ensure_ascii=False, default=str)
        return text.encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row set aside."""

    number: int
    kind: str
    reason: str
    raw: bytes
    """The row as it stands in the file, its first 64 KB; empty where it has no bytes of its own (Parquet)."""
    cut: bool
    """Whether `raw` is only the beginning."""


@dataclass(slots=True)
class BadRows:
    """What becomes of rows that cannot be used, and how far reading has come.

    "stop" raises at the first; "quarantine" sets aside, counts and tells `sink`.
    """

    policy: Literal["stop", "quarantine"] = "stop"
    count: int = 0
    reasons: list[tuple[int, str]] = field(default_factory=list)
    """(row number, reason) of the first `MAX_KEPT_REASONS` rows set aside."""
    sink: Callable[[BadRow], None] | None = None
    bytes_read: int = 0
    """Of the file, so far: what a progress bar shows."""

    def add(self, number: int, error: RowError, raw: bytes = b"") -> None:
        """Raise `error`, or keep its number and reason, as the policy says."""
        if self.policy == "stop":
            raise error
        self.count += 1
        if len(self.reasons) < MAX_KEPT_REASONS:
            self.reasons.append((number, error.found))
        if self.sink is not None:
            kept = raw[:KEPT_RAW_BYTES]
            self.sink(BadRow(number, error.kind, error.reason, kept, len(kept) < len(raw)))

    def first(self) -> str:
        """The first reason in words, for an error about a file without one usable row."""
        return f"{self.count:,} rows were set aside; the first: {self.reasons[0][1]}" if self.reasons else ""


def row_error(
    path: Path | str, number: int, reason: str, expected: str = "", todo: str = "", *, kind: str = "row"
) -> RowError:
    """A RowError that names file, row and reason."""
    todo = todo or "mend the row, or set bad_rows: quarantine"
    return RowError(f"{path}, row {number}: {reason}", expected, todo, kind=kind, reason=reason)


def not_utf8(path: Path, number: int, line: bytes, error: UnicodeDecodeError) -> RowError:
    """What a line that is not UTF-8 is told."""
    zeros = ", with NUL bytes" if b"\0" in line else ""
    reason = f"not UTF-8 (byte {error.start} of the line{zeros})"
    return row_error(path, number, reason, "UTF-8 text", kind="encoding")


def open_file(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataFileMissingError(
            f"{path} cannot be opened ({error.strerror})", "a readable file", "check its permissions"
        ) from None


def lines_of(path: Path, bad: BadRows) -> Iterator[tuple[int, bytes]]:
    """(number, line without its end) of a file; a line beyond 8 MB is a bad row and is skipped unread."""
    with open_file(path) as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            bad.bytes_read += len(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) > MAX_ROW_BYTES:
                bad.add(number, _too_long(path, number, line), line)
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW_BYTES)
                    bad.bytes_read += len(line)
                continue
            yield number, line.rstrip(b"\r\n")


def _too_long(path: Path, number: int, line: bytes) -> RowError:
    zeros = " and full of NUL bytes" if line.count(0) > len(line) // 2 else ""
    most = f"{MAX_ROW_BYTES >> 20} MB"
    return row_error(path, number, f"longer than {most}{zeros}", f"rows of at most {most}", kind="too_long")
