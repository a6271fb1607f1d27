"""Rows of CSV and TSV tables, streamed; knows nothing of what a column means."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from scaler_wizard.data.rows import MAX_ROW_BYTES, BadRows, Row, lines_of, not_utf8, row_error
from scaler_wizard.errors import FormatError


def read_csv(path: Path, bad: BadRows) -> Iterator[Row]:
    """Rows of a table with a header line; every value is text."""
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _RecordLines(path, bad)
    table = csv.reader(lines, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    header: list[str] | None = None
    while True:
        number = table.line_num + 1
        lines.begin(number)
        try:
            cells = next(table, None)
        except csv.Error as error:
            raise row_error(
                path, number, f"not CSV ({error})", "quotes that close",
                "mend the quotes; later rows cannot be found", kind="damage",
            ) from None  # fmt: skip
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        raw = ",".join(cells).encode("utf-8", "surrogateescape")
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as broken:
            bad.add(number, not_utf8(path, number, raw, broken), raw)
            continue
        if header is None:
            header = _csv_header(path, cells)
        elif len(cells) != len(header):
            reason = f"{len(cells)} cells"
            expected = f"{len(header)}, as in the header"
            bad.add(number, row_error(path, number, reason, expected, kind="cells"), raw)
        else:
            yield Row(number, dict(zip(header, cells, strict=True)))


class _RecordLines:
    """The lines of a table, and a bound on what one record may swallow: a quote may never close."""

    def __init__(self, path: Path, bad: BadRows) -> None:
        self._path, self._lines = path, lines_of(path, bad)
        self._number, self._bytes = 1, 0

    def begin(self, number: int) -> None:
        """The next line starts record `number`."""
        self._number, self._bytes = number, 0

    def __iter__(self) -> _RecordLines:
        return self

    def __next__(self) -> str:
        _, line = next(self._lines)
        self._bytes += len(line) + 1
        if self._bytes > MAX_ROW_BYTES:
            most = f"longer than {MAX_ROW_BYTES >> 20} MB, or a quote that never closes"
            raise row_error(self._path, self._number, most, "quotes that close", kind="damage")
        # Bytes that are not UTF-8 become lone surrogates here, so that one bad cell costs its row.
        return line.decode("utf-8", "surrogateescape") + "\n"


def _csv_header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(set(names)) != len(names) or not all(names):
        raise FormatError(
            f"{path} has the header {', '.join(names)!r}", "one different name for every column",
            "write the column names into the first line",
        )  # fmt: skip
    return names
