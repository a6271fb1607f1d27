"""A JSON Lines file that appears under its name whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from scaler_wizard.errors import DataError


class JsonlWriter:
    """Writes beside the target and takes its name at the end; an exception leaves the target as it was.

    Raises:
        DataError: the target exists and `force` is off, or cannot be written.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        check_target(path, force=force)
        self.path = path
        self._part = path.with_name(f".{path.name}.part")
        self._file: BinaryIO | None = None

    def __enter__(self) -> JsonlWriter:
        try:
            self._file = self._part.open("wb")
        except OSError as error:
            raise self._refused(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                self._part.replace(self.path)
        except OSError as broken:
            raise self._refused(broken) from None
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, value: Mapping[str, Any]) -> None:
        """One row."""
        assert self._file is not None
        try:
            self._file.write(json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n")
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> DataError:
        return DataError(
            f"{self.path} cannot be written ({error.strerror})", "a folder that can be written, with room",
            "name another file, or free some space",
        )  # fmt: skip


def check_target(path: Path, *, force: bool = False) -> None:
    """Refuse a file that is there already, unless forced, and a folder always.

    Raises:
        DataError: says which.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder", "the name of a file", "name a file in it")
    if path.exists() and not force:
        raise DataError(f"{path} exists already", "a new file name", "choose another, or say --force")
