"""Files to rows: JSON Lines, JSON arrays, CSV, Parquet, Arrow and plain text, streamed in bounded memory.

Knows nothing of row formats, tokenizers or torch. Every file is hostile input: a row that cannot be
read either stops the reading or is set aside and counted (`BadRows`), and is never dropped in silence.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from scaler_wizard.data.arrow_rows import is_saved_dataset, read_arrow, read_parquet, read_saved_dataset
from scaler_wizard.data.json_rows import read_json, read_jsonl
from scaler_wizard.data.rows import BadRows, Row, lines_of, not_utf8
from scaler_wizard.data.table_rows import read_csv
from scaler_wizard.errors import DataFileMissingError, EmptyDataError, FormatError

DOCUMENT_CHARS = 16_384
SMALLEST_DOCUMENT_CHARS = 512
LEAST_DOCUMENTS = 40


def read_rows(path: Path, *, max_rows: int | None = None, bad_rows: BadRows | None = None) -> Iterator[Row]:
    """Stream the rows of a data file, or of a directory that `datasets` saved; a suffix names the format.

    Memory is bounded by one row (at most 8 MB), or one page of a Parquet file, one batch of an Arrow file.
    JSON numbers NaN and Infinity are refused; NaN in Parquet, where it stands for "no value", becomes None. A
    plain text file becomes `{"text": ...}` rows of at most 16,384 characters, cut at blank lines where there
    are any; joined, they are the file with \n line ends, but for stretches of nothing but blanks.

    Args:
        max_rows: stop after this many rows.
        bad_rows: policy and record of unreadable rows; stops at the first when None.

    Raises:
        DataFileMissingError: nothing there, or not a regular file, or not readable.
        EmptyDataError: no bytes, only blanks, or not one usable row.
        FormatError: a file type that is not read.
        RowError: an unreadable row under the policy "stop", or (under either policy) damage after which the
            next row cannot be found: inside a JSON array, a quoted CSV field, a Parquet file.
    """
    bad = bad_rows if bad_rows is not None else BadRows()
    saved = path.is_dir() and is_saved_dataset(path)
    reader = read_saved_dataset if saved else _READERS.get(path.suffix.lower())
    if not saved:
        _check_file(path)
    if reader is None:
        raise FormatError(
            f"{path} has the file type {path.suffix or '(none)'}", f"one of {', '.join(_READERS)}",
            "convert the file, or give it the suffix of what it holds",
        )  # fmt: skip
    n_rows = 0
    for row in reader(path, bad):
        if max_rows is not None and n_rows >= max_rows:
            return
        n_rows += 1
        yield row
    if n_rows == 0:
        raise EmptyDataError(
            f"{path} holds no usable row" + (f" ({bad.first()})" if bad.count else ""),
            "at least one row",
            "check that this is the file you meant",
        )


def _check_file(path: Path) -> None:
    """Refuse what is not a readable regular file (symbolic links to one are fine) or has no bytes."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataFileMissingError(
            f"no data file at {path} ({error.strerror})", "a readable file", "check the path"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise DataFileMissingError(
            f"{path} is {kind}", "a regular file, or a directory that datasets saved", "name the file itself"
        )
    if status.st_size == 0:
        raise EmptyDataError(
            f"{path} has 0 bytes", "at least one row", "check that this is the file you meant"
        )


def _read_text(path: Path, bad: BadRows) -> Iterator[Row]:
    """Documents cut at a blank line in their second half, else at a line's end.

    At most `DOCUMENT_CHARS` each, less for a small file: its held-out share must not be one half of it.
    """
    most = min(DOCUMENT_CHARS, max(SMALLEST_DOCUMENT_CHARS, path.stat().st_size // LEAST_DOCUMENTS))
    pending, start = "", 1
    for number, line in lines_of(path, bad):
        try:
            pending += line.decode("utf-8") + "\n"
        except UnicodeDecodeError as error:
            bad.add(number, not_utf8(path, number, line, error), line)
            continue
        while len(pending) > most:
            head = pending[:most]
            cut = head.rfind("\n\n", most // 2) + 2
            if cut < 2:
                cut = head.rfind("\n") + 1 or most
            if head[:cut].strip():
                yield Row(start, {"text": pending[:cut]})
            start += pending.count("\n", 0, cut)
            pending = pending[cut:]
    if pending.strip():
        yield Row(start, {"text": pending})


_READERS: dict[str, Callable[[Path, BadRows], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": _read_text,
    ".md": _read_text,
}
