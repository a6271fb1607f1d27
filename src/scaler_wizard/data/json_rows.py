"""Rows of JSON Lines files and JSON arrays, streamed; knows nothing of what a row means."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from scaler_wizard.data.rows import MAX_ROW_BYTES, BadRows, Row, lines_of, open_file, row_error
from scaler_wizard.errors import RowError

_READ_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


def read_jsonl(path: Path, bad: BadRows) -> Iterator[Row]:
    for number, line in lines_of(path, bad):
        if not line.strip():
            continue
        try:
            yield Row(number, _json_object(line.decode("utf-8")))
        except UnicodeDecodeError as error:
            bad.add(
                number, row_error(path, number, f"not UTF-8 (byte {error.start} of the line)", "UTF-8 text")
            )
        except (ValueError, RecursionError) as error:
            bad.add(number, row_error(path, number, str(error), "one JSON object a line"))


def _json_object(text: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        ValueError: not JSON, not an object, a NaN, or text that is not Unicode; the message says which.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    return _checked_object(value)


def _checked_object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{_JSON_NAMES.get(type(value), 'a value')} instead of an object")
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
        raise RowError(error.found, "an array of objects, or one object a line", error.todo) from None


def _array_rows(path: Path, buffer: _JsonBuffer, bad: BadRows) -> Iterator[Row]:
    buffer.skip()
    number = 0
    if buffer.peek() == "]":
        return
    while True:
        number += 1
        value = buffer.value(number)
        try:
            yield Row(number, _checked_object(value))
        except ValueError as error:
            bad.add(number, row_error(path, number, str(error), "an array of objects"))
        mark = buffer.peek()
        if mark == "]":
            return
        if mark != ",":
            raise row_error(path, number, f"followed by {mark or 'the end of the file'!r}", "a comma or ]")
        buffer.skip()


class _JsonBuffer:
    """A sliding window over a JSON text, grown until it holds the next value whole."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    def _grow(self, number: int = 1) -> bool:
        """Read as much again as is kept (so that re-parsing stays linear); False at the end of the file."""
        if self._ended:
            return False
        raw = self._file.read(max(_READ_BYTES, len(self._text) - self._at))
        self._ended = not raw
        try:
            self._text = self._text[self._at :] + self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise row_error(self._path, number, f"not UTF-8 ({error.reason})", "UTF-8 text") from None
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

    def value(self, number: int) -> object:
        """The next value; `number` is its row, for messages."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended:
                    raise row_error(
                        self._path, number, f"not JSON ({error.msg})", "an array of objects"
                    ) from None
            except (ValueError, RecursionError) as error:
                reason = "JSON nested too deeply" if isinstance(error, RecursionError) else str(error)
                raise row_error(self._path, number, reason, "an array of objects") from None
            if len(self._text) - self._at > MAX_ROW_BYTES:
                raise row_error(
                    self._path, number, "longer than 16 MB, or a bracket that never closes", "smaller rows"
                )
            self._grow(number)
