"""Rows of Arrow tables: Parquet files, Arrow files, and directories that `datasets` saved.

Streamed batch by batch; knows nothing of what a column means. Directories are read with pyarrow alone: the
file list in `state.json` is hostile input, and names that leave the directory are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaler_wizard.data.rows import BadRows, Row, row_error
from scaler_wizard.errors import DataFileMissingError, FormatError

BATCH_BYTES = 4 << 20
MAX_BATCH_ROWS = 1024
MAX_STATE_BYTES = 10_000_000


def read_parquet(path: Path, bad: BadRows) -> Iterator[Row]:
    # Imported here: 0.2 s that only tables need; `scaler plan` reads its sample through this.
    import pyarrow.parquet

    numbers = _Counter()
    with _damage(path, "Parquet", numbers), pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        n_rows = max(1, file.metadata.num_rows)
        # Rows of 1 MB must not be read a thousand at a time.
        most = min(MAX_BATCH_ROWS, max(1, BATCH_BYTES * n_rows // max(1, sum(sizes))))
        total = path.stat().st_size
        for batch in file.iter_batches(batch_size=most):
            yield from _rows(batch, numbers)
            bad.bytes_read = total * numbers.count // n_rows


def read_arrow(path: Path, bad: BadRows) -> Iterator[Row]:
    """One Arrow file, in the streaming or the file format."""
    yield from _arrow_rows(path, bad, _Counter())


def read_saved_dataset(path: Path, bad: BadRows) -> Iterator[Row]:
    """A directory that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; of several splits, train.

    Raises:
        FormatError: several splits and none called train, or a listing that names files elsewhere.
    """
    directory = _split_of(path)
    state = _state(directory / "state.json")
    if state.get("_indices_data_files"):
        raise FormatError(
            f"{directory} holds a selection that was never written out", "a dataset with its own rows",
            "call flatten_indices() before save_to_disk()",
        )  # fmt: skip
    numbers = _Counter()
    for entry in state.get("_data_files") or ():
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or Path(name).name != name or not (directory / name).is_file():
            raise FormatError(
                f"{directory}/state.json lists the file {name!r}", "Arrow files inside the directory",
                "save the dataset again",
            )  # fmt: skip
        yield from _arrow_rows(directory / name, bad, numbers)


def is_saved_dataset(path: Path) -> bool:
    """Whether a directory was written by `save_to_disk`."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


class _Counter:
    """Rows given so far, over all files."""

    count = 0


def _arrow_rows(path: Path, bad: BadRows, numbers: _Counter) -> Iterator[Row]:
    import pyarrow
    import pyarrow.ipc

    before, size = bad.bytes_read, path.stat().st_size
    # Read, not mapped: pages of a mapped file would count as our memory.
    with _damage(path, "Arrow", numbers), pyarrow.OSFile(str(path)) as file:
        is_file_format = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file_format:
            reader = pyarrow.ipc.open_file(file)
            for index in range(reader.num_record_batches):
                yield from _rows(reader.get_batch(index), numbers)
                bad.bytes_read = before + size * (index + 1) // reader.num_record_batches
        else:
            for batch in pyarrow.ipc.open_stream(file):
                yield from _rows(batch, numbers)
                bad.bytes_read = before + file.tell()


def _rows(batch: Any, numbers: _Counter) -> Iterator[Row]:
    most = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * max(1, batch.num_rows) // max(1, batch.nbytes)))
    for start in range(0, batch.num_rows, most):
        for value in batch.slice(start, most).to_pylist():
            numbers.count += 1
            yield Row(numbers.count, {key: _without_nan(item) for key, item in value.items()})


@contextmanager
def _damage(path: Path, name: str, numbers: _Counter) -> Iterator[None]:
    """Whatever pyarrow says about broken bytes, in our words."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        reason = f"not {name} ({' '.join(str(error).split())[:200]})"
        expected = f"an intact {name} file"
        raise row_error(path, numbers.count + 1, reason, expected, "fetch it again", kind="damage") from None


def _split_of(path: Path) -> Path:
    """The directory itself, or the split to read of a directory with several."""
    if not (path / "dataset_dict.json").is_file():
        return path
    listed = _state(path / "dataset_dict.json").get("splits")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    name = names[0] if len(names) == 1 else "train"
    if name not in names or Path(name).name != name or not (path / name / "state.json").is_file():
        raise FormatError(
            f"{path} holds the splits {', '.join(names) or '(none)'}", 'one split, or one called "train"',
            f"name the split's own directory, such as {path}/test",
        )  # fmt: skip
    return path / name


def _state(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise ValueError("too large")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataFileMissingError(
            f"{path} cannot be read ({error.strerror})", "a saved dataset", "check the path"
        ) from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FormatError(
            f"{path} is not a JSON object", "what save_to_disk writes", "save the dataset again"
        )
    return value


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return value
