"""The problems a data file can have: what each is called, how bad it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Severity = Literal["fatal", "bad_line", "warning"]
"""fatal: the file cannot be used as it is. bad_line: the line is set aside. warning: the line is used."""

NAMED_LINES: Final = 10


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem in words."""

    severity: Severity
    words: str
    todo: str


KINDS: Final[dict[str, Kind]] = {
    "not_text": Kind("fatal", "the file is not UTF-8 text", "save it as UTF-8, or give it its right suffix"),
    "damage": Kind("fatal", "damage after which no row can be found", "mend the place that is named"),
    "unknown_format": Kind("fatal", "no row is in a known format", "rename the keys to a known format"),
    "empty": Kind("fatal", "no usable row", "check that this is the file you meant"),
    "json": Kind("bad_line", "not a JSON object", "mend the line"),
    "encoding": Kind("bad_line", "not UTF-8", "save the file as UTF-8"),
    "too_long": Kind("bad_line", "longer than 8 MB", "cut the row into several"),
    "cells": Kind("bad_line", "another number of cells than the header", "mend the separators or quotes"),
    "format": Kind("bad_line", "not in the file's format", "one format a file"),
    "roles": Kind("bad_line", "a role or turn is missing or unknown", "give every turn a role and an answer"),
    "empty_turn": Kind("bad_line", "an empty turn", "fill it or remove the row"),
    "row": Kind("bad_line", "cannot be used", "mend the row"),
    "bom": Kind("warning", "the file begins with a byte order mark, which is skipped", "save without BOM"),
    "duplicate": Kind(
        "warning", "says the same as an earlier row", "remove repeats: they are learned by heart"
    ),
    "near_duplicate": Kind("warning", "nearly the same as an earlier row", "look at the named rows"),
    "leakage": Kind(
        "warning", "stands in the validation file too", "remove it, or the validation measures memory"
    ),
    "prompt_leakage": Kind("warning", "its prompt stands in the validation file", "remove it from one side"),
    "near_leakage": Kind("warning", "nearly the same as a validation row", "look at the named rows"),
    "answer_leakage": Kind(
        "warning", "the answer stands in the prompt", "normal for copying and extraction; else rephrase"
    ),
    "too_many_tokens": Kind("warning", "longer than max_length", "raise max_length or cut the rows"),
    "validation_cut": Kind("warning", "the validation file was compared in part", "use a smaller one"),
}
ORDER: Final = tuple(KINDS)


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem in one file."""

    kind: str
    count: int
    lines: tuple[int, ...]
    """The first ten line numbers (row numbers for JSON arrays, Parquet and Arrow)."""
    example: str
    """What was found at the first of them."""

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return KINDS[self.kind].severity

    def words(self) -> str:
        """One sentence for a person."""
        kind = KINDS[self.kind]
        lines = ", ".join(f"{line:,}" for line in self.lines[:5])
        more = ", ..." if self.count > 5 and self.lines else ""
        place = f" (line {lines}{more})" if self.lines else ""
        example = f": {self.example}" if self.example and self.example != kind.words else ""
        return f"{self.count:,} x {kind.words}{place}{example}. {kind.todo}"

    def as_dict(self) -> dict[str, object]:
        """JSON-ready fields."""
        return {
            "kind": self.kind, "severity": self.severity, "count": self.count, "lines": list(self.lines),
            "example": self.example, "words": self.words(),
        }  # fmt: skip


@dataclass(slots=True)
class ProblemCounts:
    """Counts problems as they come; keeps the first lines of each kind only."""

    _found: dict[str, tuple[int, list[int], str]] = field(default_factory=dict)

    def add(self, kind: str, line: int | None = None, example: str = "") -> None:
        """One more problem of a kind, at a line where it has one."""
        kind = kind if kind in KINDS else "row"
        count, lines, first = self._found.get(kind, (0, [], example))
        if line is not None and len(lines) < NAMED_LINES:
            lines.append(line)
        self._found[kind] = (count + 1, lines, first)

    def count(self, kind: str) -> int:
        """How many of one kind so far."""
        return self._found[kind][0] if kind in self._found else 0

    def summary(self) -> tuple[Problem, ...]:
        """Worst first."""
        return tuple(
            Problem(kind, count, tuple(sorted(lines)), example)
            for kind in ORDER
            if kind in self._found
            for count, lines, example in [self._found[kind]]
        )
