"""One file to learn from, and rows of earlier files to replay: split, tokenised, drawn by hash.

Rows are streamed: a file costs its tokens (5 bytes each) and 16 bytes a row, whatever its text is. Only a few
rows are kept as they are: those that are asked as questions or replayed. A row's side of the split depends on
its content and the lineage's seed alone, so that what one file holds out no later file trains on. Torch-free.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scaler_wizard.data.dataset import open_rows
from scaler_wizard.data.formats import Conversation, RowFormat, to_messages
from scaler_wizard.data.rows import BadRows, Row
from scaler_wizard.data.split import holdout_threshold, row_position
from scaler_wizard.data.token_rows import TokenRows
from scaler_wizard.data.tokens import Dress, TokenReport, as_it_is, tokenize_rows
from scaler_wizard.errors import DataError, RowError
from scaler_wizard.specs.sections import DatasetSection

ROWS_BETWEEN_REPORTS = 1000


@dataclass(frozen=True, slots=True)
class Lesson:
    """A file's token rows, each on its side of the split."""

    row_format: RowFormat
    train: TokenRows
    held_out: TokenRows
    """Empty where the file has fewer than two different rows."""
    questions: tuple[Conversation, ...]
    """Some held-out conversations as they stand in the file."""
    n_train: int
    """Data rows that are trained on."""
    n_held_out: int
    report: TokenReport
    bad: BadRows


@dataclass(frozen=True, slots=True)
class Replay:
    """Rows of earlier files."""

    rows: TokenRows
    held_out: TokenRows
    """Some rows that the earlier files held out: what must not be forgotten."""
    questions: tuple[Conversation, ...]
    """Those of them that are conversations, as they stand in the files."""
    files: int
    """Files that rows were drawn from."""
    missing: tuple[str, ...]
    """Earlier files that could not be read, and why."""


class _Drawn:
    """The `size` rows of a stream with the smallest keys, in the order of their keys."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, float, Row]] = []

    def offer(self, key: float, position: float, row: Row) -> None:
        """Keep the row while it is among the smallest."""
        item = (-key, -row.number, position, row)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, item)
        elif self._size and item > self._heap[0]:
            heapq.heapreplace(self._heap, item)

    def taken(self) -> list[tuple[float, Row]]:
        """(position in the split, row)."""
        return [(position, row) for _, _, position, row in sorted(self._heap, reverse=True)]


def read_lesson(
    section: DatasetSection,
    tokenizer: Any,
    *,
    context: int,
    seed: int,
    questions: int,
    dress: Dress = as_it_is,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Lesson:
    """Read, split and tokenise one file.

    Args:
        context: most tokens of a piece.
        seed: the lineage's.
        questions: most held-out conversations to keep.
        dress: changes a conversation before it is tokenised (a data profile).
        on_rows: told now and then how many rows were read.

    Raises:
        DataError: see `dataset.open_rows` and `tokens.tokenize_rows`.
    """
    bad = BadRows(section.bad_rows)
    row_format, rows = open_rows(section, bad)
    numbers, positions, lowest = array("q"), array("d"), _Drawn(questions)

    def noted() -> Iterator[Row]:
        for row in rows:
            position = row_position(row, seed)
            numbers.append(row.number)
            positions.append(position)
            lowest.offer(position, position, row)
            if len(numbers) % ROWS_BETWEEN_REPORTS == 0:
                on_rows(len(numbers))
            yield row

    tokenized = tokenize_rows(
        noted(), row_format, tokenizer, context=context, long_rows=section.long_rows,
        system_prompt=section.system_prompt, bad_rows=bad, source=section.identifier, dress=dress,
    )  # fmt: skip
    piece_positions = np.array(positions)[np.searchsorted(np.array(numbers), tokenized.rows.numbers)]
    threshold = holdout_threshold(np.unique(piece_positions).tolist(), section.holdout_fraction)
    held = piece_positions < threshold
    asked = [row for position, row in lowest.taken() if position < threshold]
    return Lesson(
        row_format=row_format,
        train=tokenized.rows.at(np.flatnonzero(~held)),
        held_out=tokenized.rows.at(np.flatnonzero(held)),
        questions=tuple(_conversations(asked, row_format, section.system_prompt)),
        n_train=_distinct(tokenized.rows.numbers[~held]),
        n_held_out=_distinct(tokenized.rows.numbers[held]),
        report=tokenized.report,
        bad=bad,
    )


def read_replay(
    files: Sequence[str],
    section: DatasetSection,
    tokenizer: Any,
    *,
    context: int,
    seed: int,
    draw: str,
    max_rows: int,
    questions: int,
    dress: Dress = as_it_is,
) -> Replay:
    """Rows drawn evenly from all earlier files of a lineage, never from what they held out.

    Args:
        section: how the rows are read; its own file is not.
        draw: names the draw: another text draws other rows.
        max_rows: most rows of all files together.
        questions: most held-out conversations of all files together.
    """
    replayed: list[TokenRows] = []
    kept: list[TokenRows] = []
    asked: list[Conversation] = []
    missing: list[str] = []
    for place, path in enumerate(files):
        share = max_rows // len(files) + (place < max_rows % len(files))
        # The format is looked for in each file; a bad row of an earlier file was reported when it was new.
        one = section.model_copy(update={"identifier": path, "format": "auto", "bad_rows": "quarantine"})
        try:
            row_format, drawn, held_out = _draw(
                one, seed, f"{draw}/{place}", share, -(-questions // len(files))
            )
            for part, found in ((replayed, drawn), (kept, held_out)):
                if found:
                    part.append(_tokens(found, row_format, one, tokenizer, context, dress))
        except DataError as error:
            # An earlier file that is gone or damaged costs its replay, not the new file's training.
            missing.append(f"{Path(path).name}: {error.found}")
            continue
        asked += _conversations(held_out, row_format, one.system_prompt)
    return Replay(
        rows=TokenRows.of(row for part in replayed for row in part),
        held_out=TokenRows.of(row for part in kept for row in part),
        questions=tuple(asked[:questions]),
        files=len(replayed),
        missing=tuple(missing),
    )


def _tokens(
    rows: list[Row],
    row_format: RowFormat,
    section: DatasetSection,
    tokenizer: Any,
    context: int,
    dress: Dress,
) -> TokenRows:
    return tokenize_rows(
        rows, row_format, tokenizer, context=context, long_rows=section.long_rows,
        system_prompt=section.system_prompt, bad_rows=BadRows("quarantine"), source=section.identifier,
        dress=dress,
    ).rows  # fmt: skip


def _draw(
    section: DatasetSection, seed: int, draw: str, share: int, questions: int
) -> tuple[RowFormat, list[Row], list[Row]]:
    """(format, rows to replay, held-out rows) of one earlier file."""
    row_format, rows = open_rows(section, BadRows("quarantine"))
    draw_seed = int.from_bytes(hashlib.blake2b(draw.encode(), digest_size=4).digest(), "big")
    positions, replayed, lowest = array("d"), _Drawn(share), _Drawn(questions)
    for row in rows:
        position = row_position(row, seed)
        positions.append(position)
        lowest.offer(position, position, row)
        if position >= section.holdout_fraction:
            replayed.offer(row_position(row, draw_seed), position, row)
    threshold = holdout_threshold(np.unique(np.array(positions)).tolist(), section.holdout_fraction)
    drawn = [row for position, row in replayed.taken() if position >= threshold]
    return row_format, drawn, [row for position, row in lowest.taken() if position < threshold]


def _conversations(
    rows: Iterable[Row], row_format: RowFormat, system_prompt: str | None
) -> Iterator[Conversation]:
    for row in rows:
        try:
            content = to_messages(row, row_format, system_prompt, "held-out row")
        except RowError:
            continue  # counted where the rows were tokenised
        if isinstance(content, Conversation):
            yield content


def _distinct(numbers: npt.NDArray[np.int64]) -> int:
    return int(np.unique(numbers).size)
