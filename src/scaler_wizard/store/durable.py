"""Writing files so that they survive kill -9, a full disk and a power cut.

Everything durable in the project goes through the few calls of `FileSystem`, so that a fault test can
fail or stop the *real* code at each of them (see `faulty.py`). This module knows bytes and paths; it
does not know what a run or a checkpoint is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

HASH_BLOCK = 1 << 20


class FileSystem(Protocol):
    """The calls that change the disk. `fsync` takes a file or a directory."""

    def mkdir(self, path: Path) -> None:
        """Create one directory, mode 700; FileExistsError when it is there."""

    def write(self, path: Path, data: bytes | memoryview) -> None:
        """Create or truncate a file and write all of `data`. Not yet durable."""

    def append(self, path: Path, data: bytes) -> None:
        """Write `data` at the end of a file, creating it. Not yet durable."""

    def fsync(self, path: Path) -> None:
        """Make a file's bytes, or a directory's entries, durable."""

    def rename(self, old: Path, new: Path) -> None:
        """Atomically give `old` the name `new`, replacing a file of that name. Not yet durable."""

    def remove_tree(self, path: Path) -> None:
        """Delete a file or directory tree; nothing happens when it is not there."""


class OsFileSystem:
    """The operating system's."""

    def mkdir(self, path: Path) -> None:
        path.mkdir(mode=0o700)

    def write(self, path: Path, data: bytes | memoryview) -> None:
        _write_all(path, data, os.O_TRUNC)

    def append(self, path: Path, data: bytes) -> None:
        _write_all(path, data, os.O_APPEND)

    def fsync(self, path: Path) -> None:
        # A fresh descriptor is enough: since Linux 4.16 the first fsync after a write-back error reports
        # it, whichever descriptor wrote the page.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def remove_tree(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


OS = OsFileSystem()


def write_atomic(path: Path, data: bytes | str, *, durable: bool = True, fs: FileSystem = OS) -> None:
    """Replace `path` by `data`: a reader, or a restart after a crash, sees the old bytes or the new ones.

    Args:
        durable: also survive a power cut (fsync of file and directory, 1-20 ms). False for files that are
            rewritten every second and worthless after a restart.

    Raises:
        OSError: nothing of the new bytes is visible under `path` unless only the last directory sync failed.
    """
    payload = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        fs.write(temporary, payload)
        if durable:
            fs.fsync(temporary)
        fs.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to report
            fs.remove_tree(temporary)
        raise
    if durable:
        fs.fsync(path.parent)


def append_durable(path: Path, line: str, *, fs: FileSystem = OS) -> None:
    """Append one line (a newline is added) and wait until it is on the disk.

    Raises:
        OSError: the line may be there in part; readers of line files here skip such a line.
        ValueError: `line` holds a newline.
    """
    if "\n" in line:
        raise ValueError("a line of a line file cannot hold a newline")
    is_new = not path.exists()
    fs.append(path, line.encode() + b"\n")
    fs.fsync(path)
    if is_new:
        fs.fsync(path.parent)


def fsync_dir(path: Path, *, fs: FileSystem = OS) -> None:
    """Make the names in a directory durable: needed after creating or renaming inside it."""
    fs.fsync(path)


def fsync_tree(directory: Path, *, fs: FileSystem = OS) -> None:
    """Make every file and then every directory below (and including) `directory` durable."""
    for parent, _, files in os.walk(directory, topdown=False):
        for name in sorted(files):
            fs.fsync(Path(parent, name))
        fs.fsync(Path(parent))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks. Refuses to follow a symbolic link (OSError ELOOP)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_text(value: Any, indent: int | None = 1) -> str:
    """Strict ASCII JSON text of plain data: NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error` was caused, directly or through `raise ... from`, by a full disk or quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _write_all(path: Path, data: bytes | memoryview, flag: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flag
    descriptor = os.open(path, flags, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
