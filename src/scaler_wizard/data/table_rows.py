"""Rows of CSV, TSV and Parquet tables, streamed; knows nothing of what a column means."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaler_wizard.data.rows import MAX_ROW_BYTES, BadRows, Row, lines_of, row_error
from scaler_wizard.errors import FormatError


def read_csv(path: Path, bad: BadRows) -> Iterator[Row]:
    """Rows of a table with a header line; every value is text."""
    csv.field_size_limit(MAX_ROW_BYTES)
    # Bytes that are not UTF-8 become lone surrogates here, so that one bad cell costs its row, not the file.
    lines = (line.decode("utf-8", "surrogateescape") + "\n" for _, line in lines_of(path, bad))
    table = csv.reader(lines, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    header: list[str] | None = None
    while True:
        number = table.line_num + 1
        try:
            cells = next(table, None)
        except csv.Error as error:
            raise row_error(
                path,
                number,
                f"not CSV ({error})",
                "quotes that close",
                "mend the quotes; later rows cannot be found",
            ) from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        try:
            "".join(cells).encode("utf-8")
        except UnicodeEncodeError:
            bad.add(number, row_error(path, number, "not UTF-8", "UTF-8 text"))
            continue
        if header is None:
            header = _csv_header(path, cells)
        elif len(cells) != len(header):
            bad.add(
                number, row_error(path, number, f"{len(cells)} cells", f"{len(header)}, as in the header")
            )
        else:
            yield Row(number, dict(zip(header, cells, strict=True)))


def _csv_header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(set(names)) != len(names) or not all(names):
        raise FormatError(
            f"{path} has the header {', '.join(names)!r}", "one different name for every column",
            "write the column names into the first line",
        )  # fmt: skip
    return names


def read_parquet(path: Path, bad: BadRows) -> Iterator[Row]:
    # Imported here: 0.2 s that only Parquet files need; `scaler plan` reads its sample through this.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(number, {key: _without_nan(item) for key, item in value.items()})
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise row_error(
            path, number + 1, f"not Parquet ({reason})", "an intact Parquet file", "fetch it again"
        ) from None


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return value
