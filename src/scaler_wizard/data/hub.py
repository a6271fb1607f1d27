"""Rows of a Hugging Face hub dataset, streamed through the optional package `datasets`.

Knows nothing of row formats. Dataset scripts are never run (`datasets` 4 and later cannot).
"""

from __future__ import annotations

from collections.abc import Iterator

from scaler_wizard.data.rows import Row
from scaler_wizard.errors import DataFileMissingError, EmptyDataError, MissingDependencyError


def read_hub_rows(
    name: str, split: str = "train", *, revision: str | None = None, max_rows: int | None = None
) -> Iterator[Row]:
    """Stream one split of a hub dataset, or of a directory laid out like one; rows are numbered from 1.

    Raises:
        MissingDependencyError: `datasets` is not installed.
        DataFileMissingError: no such dataset or split, or no network; says the library's reason.
        EmptyDataError: the split has no row.
    """
    try:
        import datasets  # heavy and optional
    except ImportError:
        raise MissingDependencyError(
            "the package `datasets` is not installed",
            "it, to read hub datasets",
            "pip install 'scaler-wizard[hub]'",
        ) from None
    try:
        stream = datasets.load_dataset(name, split=split, revision=revision, streaming=True)
    # OSError covers an unreachable hub and missing files; ValueError an unknown split, name or layout.
    except (OSError, ValueError) as error:
        raise DataFileMissingError(
            f"the dataset {name} (split {split}) cannot be read: {' '.join(str(error).split())[:200]}",
            "the name of a hub dataset, and a network to fetch it over",
            "check name and split, or download it and use source: local",
        ) from None
    number = 0
    for number, value in enumerate(stream, start=1):
        if max_rows is not None and number > max_rows:
            return
        yield Row(number, dict(value))
    if number == 0:
        raise EmptyDataError(f"split {split} of {name} has no row", "at least one", "choose another split")
