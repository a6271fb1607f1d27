"""Whether a data file can be learned from, and what is wrong with it, in bounded memory.

quick     every line is read: JSON, encoding, format, roles, empty turns, exact duplicates
standard  lengths, leakage into a validation file and of answers into prompts as well
deep      near duplicates and near leakage as well

A bad line is set aside and counted; it stops nothing unless asked. Torch-free. Memory does not grow with the
file: duplicates are looked for on disk (`repeats`, `near`), a row is at most 8 MB. Disk does: up to 16 bytes
a row in the folder for temporary files, 450 at level deep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from scaler_wizard.data.content import Content, read_content
from scaler_wizard.data.fingerprints import signature
from scaler_wizard.data.formats import RowFormat
from scaler_wizard.data.lengths import Lengths, Unit
from scaler_wizard.data.near import KnownTexts, NearDuplicates
from scaler_wizard.data.problems import ProblemCounts
from scaler_wizard.data.quarantine import Quarantine
from scaler_wizard.data.readers import read_rows
from scaler_wizard.data.repeats import RepeatFinder
from scaler_wizard.data.rows import BadRow, BadRows, Row
from scaler_wizard.data.sniff import file_bytes, has_bom, other_file_type
from scaler_wizard.data.token_count import token_counter
from scaler_wizard.data.validation_report import ValidationReport
from scaler_wizard.errors import DataError, EmptyDataError, RowError

MAX_VALIDATION_ROWS = 200_000
MAX_NEAR_VALIDATION_ROWS = 20_000
SHORTEST_ANSWER = 4

OnProgress = Callable[[int, int], None]
"""Told (bytes read, bytes of the file) now and then."""


class Level(StrEnum):
    """How closely to look; each level does what the one before does, and more."""

    QUICK = "quick"
    STANDARD = "standard"
    DEEP = "deep"


def validate_file(
    path: Path,
    level: Level | str = Level.STANDARD,
    *,
    tokenizer: Any = None,
    max_length: int | None = None,
    validation: Path | None = None,
    quarantine: Path | None = None,
    on_bad_line: Literal["quarantine", "fail"] = "quarantine",
    on_progress: OnProgress | None = None,
) -> ValidationReport:
    """Read a data file to its end and report.

    Args:
        tokenizer: lengths are in its tokens (with its chat template, if it has one); in characters when None.
        max_length: rows longer than this are named; in the unit of the lengths.
        validation: a file whose rows must not stand in this one.
        quarantine: where bad lines are written; they are only counted when None.
        on_bad_line: "fail" raises at the first bad line.

    Raises:
        DataFileMissingError, FormatError: nothing to read there, or a file type that is not read.
        RowError: a bad line under "fail".
        DataError: `quarantine` cannot be written, or is one of the files that are read.
    """
    for source in (path, validation):
        if quarantine is not None and source is not None and quarantine.resolve() == source.resolve():
            raise DataError(
                f"{quarantine} is a file to read", "a quarantine file of its own", "name another file"
            )
    check = _Check(Path(path), Level(level), tokenizer, max_length, validation)
    return check.run(quarantine, on_bad_line, on_progress)


class _Check:
    """One validation."""

    def __init__(
        self, path: Path, level: Level, tokenizer: Any, max_length: int | None, validation: Path | None
    ) -> None:
        self.path, self.level, self.validation = path, level, validation
        self.problems = ProblemCounts()
        self.format: RowFormat | None = None
        self.accepted = 0
        self.count_tokens = token_counter(tokenizer) if tokenizer is not None else None
        unit: Unit = "characters" if tokenizer is None else "tokens"
        self.lengths = Lengths(unit, max_length)
        self.known_rows = KnownTexts(near=level == Level.DEEP)
        self.known_prompts = KnownTexts(near=False)

    def run(
        self, quarantine: Path | None, on_bad_line: str, on_progress: OnProgress | None
    ) -> ValidationReport:
        size = file_bytes(self.path)
        with ExitStack() as stack:
            store = stack.enter_context(Quarantine(quarantine)) if quarantine is not None else None
            bad = BadRows("stop" if on_bad_line == "fail" else "quarantine", sink=self._sink(store))
            other = other_file_type(self.path)
            if other:
                self.problems.add("not_text", 1, other)
            else:
                if has_bom(self.path):
                    self.problems.add("bom", 1)
                self._learn_validation()
                self._read(stack, bad, size, on_progress)
            written = store is not None and store.written
        return ValidationReport(
            path=str(self.path), level=self.level.value, file_bytes=size, row_format=self.format,
            accepted=self.accepted, quarantined=bad.count, duplicates=self.problems.count("duplicate"),
            problems=self.problems.summary(),
            lengths=None if self.level == Level.QUICK else self.lengths.summary(),
            quarantine=str(quarantine) if written else None,
        )  # fmt: skip

    def _sink(self, store: Quarantine | None) -> Callable[[BadRow], None]:
        def sink(row: BadRow) -> None:
            self.problems.add(row.kind, row.number, row.reason)
            if store is not None:
                store.add(row)

        return sink

    def _read(self, stack: ExitStack, bad: BadRows, size: int, on_progress: OnProgress | None) -> None:
        deep = self.level == Level.DEEP
        near = stack.enter_context(NearDuplicates(self._repeat("near_duplicate"))) if deep else None
        exact = stack.enter_context(RepeatFinder(self._repeat("duplicate")))
        for row in self._rows(bad):
            content = self._content(row, bad)
            if content is not None:
                self.accepted += 1
                exact.add(content.fingerprint, row.number)
                if self.level != Level.QUICK:
                    self._standard(row.number, content)
                if near is not None:
                    found = signature(content.text)
                    near.add(row.number, content.fingerprint, found)
                    is_known = self.known_rows.holds(content.fingerprint)
                    if not is_known and self.known_rows.resembles(found):
                        self.problems.add("near_leakage", row.number)
            if on_progress is not None:
                on_progress(bad.bytes_read, size)
        exact.finish()
        if near is not None:
            near.finish()
        if self.accepted == 0 and not self.problems.count("damage"):
            strange = self.format is None and self.problems.count("format")
            self.problems.add("unknown_format" if strange else "empty")

    def _repeat(self, kind: str) -> Callable[[int, int], None]:
        return lambda number, first: self.problems.add(kind, number, f"as line {first:,}")

    def _rows(self, bad: BadRows) -> Iterator[Row]:
        """Rows up to the end, or to damage that hides the rest, which is a problem and no exception."""
        try:
            yield from read_rows(self.path, bad_rows=bad)
        except EmptyDataError:
            return  # no row came; the caller says so
        except RowError as error:
            if bad.policy == "stop":
                raise
            self.problems.add("damage", None, error.found.removeprefix(f"{self.path}, "))

    def _content(self, row: Row, bad: BadRows) -> Content | None:
        """What the row says; None where it was set aside."""
        try:
            content = read_content(row, self.format, str(self.path))
        except RowError as error:
            bad.add(row.number, error, row.raw_text())
            return None
        self.format = self.format or content.row_format
        return content

    def _standard(self, number: int, content: Content) -> None:
        length = self.count_tokens(content) if self.count_tokens else len(content.text)
        if self.lengths.add(length):
            self.problems.add("too_many_tokens", number, f"{length:,} {self.lengths.unit}")
        if self.known_rows.holds(content.fingerprint):
            self.problems.add("leakage", number)
        elif content.prompt and self.known_prompts.holds(content.prompt_fingerprint):
            self.problems.add("prompt_leakage", number)
        if content.answer_in_prompt(SHORTEST_ANSWER):
            self.problems.add("answer_leakage", number, content.answer[:60])

    def _learn_validation(self) -> None:
        """Read the validation file into the two sets; its own bad rows are not this file's problem."""
        if self.validation is None or self.level == Level.QUICK:
            return
        most = MAX_NEAR_VALIDATION_ROWS if self.level == Level.DEEP else MAX_VALIDATION_ROWS
        row_format: RowFormat | None = None
        for row in read_rows(self.validation, bad_rows=BadRows("quarantine")):
            if len(self.known_rows) >= most:
                self.problems.add("validation_cut", None, f"its first {most:,} rows")
                return
            try:
                content = read_content(row, row_format, str(self.validation))
            except RowError:
                continue  # a row that cannot be measured with cannot leak
            row_format = content.row_format
            self.known_rows.add(content.fingerprint, content.text)
            if content.prompt:
                self.known_prompts.add(content.prompt_fingerprint, "")
