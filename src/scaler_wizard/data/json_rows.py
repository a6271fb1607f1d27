"""Rows of JSON Lines files and JSON arrays, streamed; knows nothing of what a row means."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from scaler_wizard.data.rows import (
    MAX_ROW_BYTES,
    BadRows,
    Row,
    lines_of,
    not_utf8,
    open_file,
    row_error,
)
from scaler_wizard.errors import RowError

_READ_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
MAX_VALUES = 1 << 20


def read_jsonl(path: Path, bad: BadRows) -> Iterator[Row]:
    for number, line in lines_of(path, bad):
        if not line.strip():
            continue
        try:
            value = _json_object(line)
        except UnicodeDecodeError as error:
            bad.add(number, not_utf8(path, number, line, error), line)
        except ValueError as error:
            bad.add(number, row_error(path, number, str(error), "one JSON object a line", kind="json"), line)
        else:
            yield Row(number, value)


def _json_object(line: bytes) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        UnicodeDecodeError: not UTF-8.
        ValueError: not JSON, not an object, a NaN, too many values, or text that is not Unicode; says which.
    """
    n_values = sum(line.count(mark) for mark in b"[{,") if len(line) > MAX_VALUES else 0
    if n_values > MAX_VALUES:
        # 8 MB of "[],[],..." would take 350 MB as Python objects.
        raise ValueError(f"more than {MAX_VALUES:,} values")
    text = line.decode("utf-8")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        zeros = "NUL bytes, " if b"\0" in line else ""
        raise ValueError(f"{zeros}not JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    return _checked_object(value, text)


def _checked_object(value: object, text: str) -> dict[str, Any]:
    """The object that `text`, decoded UTF-8, was parsed into."""
    if not isinstance(value, dict):
        raise ValueError(f"{_JSON_NAMES.get(type(value), 'a value')} instead of an object")
    # Decoded UTF-8 holds no surrogate, so only an escape can have made one: the costly look is rare.
    if _SURROGATE_ESCAPE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair (\\ud800 to \\udfff), which is not text") from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}, which is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_JSON_NAMES: dict[type, str] = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def read_json(path: Path, bad: BadRows) -> Iterator[Row]:
    """An array of objects; a file that starts with an object is read as JSON Lines."""
    with open_file(path) as file:
        buffer = _JsonBuffer(path, file)
        if buffer.peek() == "[":
            yield from _array_rows(path, buffer, bad)
            return
    try:
        yield from read_jsonl(path, bad)
    except RowError as error:
        expected = "an array of objects, or one object a line"
        raise RowError(error.found, expected, error.todo, kind=error.kind, reason=error.reason) from None


def _array_rows(path: Path, buffer: _JsonBuffer, bad: BadRows) -> Iterator[Row]:
    buffer.skip()
    number = 0
    if buffer.peek() == "]":
        return
    while True:
        number += 1
        value, text = buffer.value(number)
        bad.bytes_read = buffer.bytes_read
        try:
            row = _checked_object(value, text)
        except ValueError as error:
            refused = row_error(path, number, str(error), "an array of objects", kind="json")
            bad.add(number, refused, text.encode("utf-8"))
        else:
            yield Row(number, row)
        mark = buffer.peek()
        if mark == "]":
            return
        if mark != ",":
            reason = f"followed by {mark or 'the end of the file'!r}"
            raise row_error(path, number, reason, "a comma or ]", kind="damage")
        buffer.skip()


class _JsonBuffer:
    """A sliding window over a JSON text, grown until it holds the next value whole."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False
        self.bytes_read = 0

    def _damage(self, number: int, reason: str, expected: str = "an array of objects") -> RowError:
        """After this the next row cannot be found."""
        return row_error(self._path, number, reason, expected, kind="damage")

    def _grow(self, number: int = 1) -> bool:
        """Read as much again as is kept (so that re-parsing stays linear); False at the end of the file."""
        if self._ended:
            return False
        raw = self._file.read(max(_READ_BYTES, len(self._text) - self._at))
        self.bytes_read += len(raw)
        self._ended = not raw
        try:
            self._text = self._text[self._at :] + self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise self._damage(number, f"not UTF-8 ({error.reason})", "UTF-8 text") from None
        self._at = 0
        return True

    def peek(self) -> str:
        """The next character that is not a blank, or "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow():
                return ""

    def skip(self) -> None:
        """Step over the character that `peek` showed."""
        self._at += 1

    def value(self, number: int) -> tuple[object, str]:
        """The next value and its text; `number` is its row, for messages."""
        self.peek()
        while True:
            self._refuse_crowd(number)
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    start, self._at = self._at, end
                    return value, self._text[start:end]
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self._damage(number, f"not JSON ({error.msg})") from None
            except (ValueError, RecursionError) as error:
                nested = isinstance(error, RecursionError)
                raise self._damage(number, "JSON nested too deeply" if nested else str(error)) from None
            if len(self._text) - self._at > MAX_ROW_BYTES:
                most = f"longer than {MAX_ROW_BYTES >> 20} MB, or a bracket that never closes"
                raise self._damage(number, most, "smaller rows")
            self._grow(number)

    def _refuse_crowd(self, number: int) -> None:
        """As in `_json_object`, once a row has grown over the first window."""
        length = len(self._text) - self._at
        if length > 2 * _READ_BYTES and sum(self._text.count(mark, self._at) for mark in "[{,") > MAX_VALUES:
            raise self._damage(number, f"more than {MAX_VALUES:,} values", "smaller rows")
