"""Where bad lines go: one JSON object a line, with the line's number, the reason, and its bytes.

The original stays as it is, so that nothing is lost when a copy is cut: 64 KB of a line, 256 MB of a file.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from scaler_wizard.data.rows import BadRow
from scaler_wizard.errors import DataError

MAX_FILE_BYTES = 256 << 20


class Quarantine:
    """Appears under its name when all is written, and only where there was a bad line. A context manager.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        self.path = path
        self._part = path.with_name(path.name + ".part")
        self._file: BinaryIO | None = None
        self._left, self._uncopied = max_bytes, 0

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if self._uncopied:
            note = (
                f"{self._uncopied} more bad lines are in the original only: this file has reached its limit"
            )
            self._write({"line": None, "kind": "limit", "reason": note})
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.path)

    @property
    def written(self) -> bool:
        """Whether there was a bad line."""
        return self._file is not None

    def add(self, bad: BadRow) -> None:
        """Write down one bad line."""
        if self._left <= 0:
            self._uncopied += 1
            return
        try:
            encoding, raw = "utf-8", bad.raw.decode("utf-8")
        except UnicodeDecodeError:
            encoding, raw = "base64", base64.b64encode(bad.raw).decode("ascii")
        record = {"line": bad.number, "kind": bad.kind, "reason": bad.reason}
        self._write(record | {"encoding": encoding, "raw": raw, "cut": bad.cut})

    def _write(self, record: dict[str, object]) -> None:
        # ASCII: control characters and line separators of a hostile line stay escapes.
        line = json.dumps(record).encode("ascii") + b"\n"
        self._left -= len(line)
        try:
            if self._file is None:
                self._file = self._part.open("wb")
            self._file.write(line)
        except OSError as error:
            raise DataError(
                f"the quarantine file {self._part} cannot be written ({error.strerror})",
                "a folder that can be written, on a disk with room", "name another with --quarantine",
            ) from None  # fmt: skip
