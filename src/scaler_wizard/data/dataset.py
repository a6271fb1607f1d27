"""A job's dataset section to rows and texts, split into what is trained on and what only measures.

Local files, hub datasets and generated tasks end in the same record. Torch-free: planning shows a sample
of exactly these rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scaler_wizard.data.formats import Conversation, RowFormat, detect_format, to_messages
from scaler_wizard.data.generators import Example
from scaler_wizard.data.hub import read_hub_rows
from scaler_wizard.data.readers import read_rows
from scaler_wizard.data.rows import BadRows, Row
from scaler_wizard.data.split import split_rows, split_share
from scaler_wizard.data.synthetic import SYNTHETIC, seedling_rows
from scaler_wizard.errors import FormatError, RowError, SpecError
from scaler_wizard.specs.sections import DatasetSection

DETECTION_ROWS = 50


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows in one format, and plain texts, each split into training and held-out."""

    source: str
    """What it is called in messages: a path or a name."""
    row_format: RowFormat
    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    train_texts: tuple[str, ...]
    """Plain text for replay and for long rows; empty where the data has none of its own."""
    held_out_texts: tuple[str, ...]
    """Plain text to measure the context on."""
    examples: tuple[Example, ...] = ()
    """Held-out generated tasks with exact verifiers."""
    bad: BadRows = field(default_factory=BadRows)
    words: str = ""
    """What was found, in a sentence."""

    def conversations(self, rows: tuple[Row, ...], system_prompt: str | None) -> Iterator[Conversation]:
        """The rows that are conversations and can be read as such."""
        for row in rows:
            try:
                content = to_messages(row, self.row_format, system_prompt, self.source)
            except RowError:
                continue  # counted and reported where the rows are tokenised
            if isinstance(content, Conversation):
                yield content


def load_dataset(section: DatasetSection, seed: int, target_context: int) -> Dataset:
    """Read, detect and split.

    Args:
        section: paths in it are absolute.
        seed: of the split and of generated rows.
        target_context: longest context of the run in tokens; generated documents reach that length.

    Raises:
        DataError: see `readers`, `formats` and `split`.
        SpecError: an unknown generator.
    """
    if section.source == "synthetic":
        return _synthetic(section, seed, target_context)
    bad = BadRows(section.bad_rows)
    found, everything = open_rows(section, bad)
    divide = split_share if found == "text" else split_rows
    split = divide(everything, section.holdout_fraction, seed)
    train_texts, held_out_texts = _texts(section, seed)
    if found == "text" and not section.text_file:
        train_texts = tuple(str(row.value["text"]) for row in split.train if _is_text(row))
        held_out_texts = tuple(str(row.value["text"]) for row in split.held_out if _is_text(row))
    count = len(split.train) + len(split.held_out)
    words = f"{section.identifier}: {found} format, {count:,} rows, {len(split.held_out):,} held out"
    return Dataset(
        section.identifier, found, split.train, split.held_out, train_texts, held_out_texts, (), bad, words
    )


def open_rows(section: DatasetSection, bad: BadRows) -> tuple[RowFormat, Iterator[Row]]:
    """The format of a file or hub dataset, and its rows as a stream.

    Raises:
        DataError: see `readers` and `formats`; also another format than the section names.
    """
    rows = _rows(section, bad)
    head = list(itertools.islice(rows, DETECTION_ROWS))
    found = detect_format(head, section.identifier)
    if section.format not in ("auto", found):
        raise FormatError(
            f"{section.identifier} is in {found} format, and the job says {section.format}",
            f"rows in {section.format} format", "set dataset.format: auto, or convert the file",
        )  # fmt: skip
    return found, itertools.chain(head, rows)


def _is_text(row: Row) -> bool:
    return isinstance(row.value.get("text"), str)


def _rows(section: DatasetSection, bad: BadRows) -> Iterator[Row]:
    if section.source == "huggingface_hub":
        return read_hub_rows(section.identifier, section.split, max_rows=section.max_rows)
    return read_rows(Path(section.identifier), max_rows=section.max_rows, bad_rows=bad)


def _texts(section: DatasetSection, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The separate text file, split like rows."""
    if not section.text_file:
        return (), ()
    rows = list(read_rows(Path(section.text_file)))
    found = detect_format(rows[:DETECTION_ROWS], section.text_file)
    if found != "text":
        raise FormatError(
            f"{section.text_file} is in {found} format", "plain text", "name a .txt file as dataset.text_file"
        )
    split = split_share(rows, max(section.holdout_fraction, 0.1), seed)
    return tuple(str(row.value["text"]) for row in split.train), tuple(
        str(row.value["text"]) for row in split.held_out
    )


def _synthetic(section: DatasetSection, seed: int, target_context: int) -> Dataset:
    if section.identifier not in SYNTHETIC:
        raise SpecError(
            f'dataset.identifier "{section.identifier}" is no generator', f"one of {', '.join(SYNTHETIC)}",
            "name one of these, or set dataset.source: local",
        )  # fmt: skip
    rows = seedling_rows(seed, section.max_rows or 4000, target_context)
    words = (
        f"generated tasks: messages format, {len(rows.train):,} rows, {len(rows.examples):,} held out with "
        f"exact verifiers; {len(rows.train_texts):,} documents"
    )
    return Dataset(
        section.identifier, "messages", rows.train, rows.held_out, rows.train_texts, rows.held_out_texts,
        rows.examples, BadRows(), words,
    )  # fmt: skip
