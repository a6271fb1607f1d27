"""The inbox on the disk: what lies there, opening it without following a link, copying it while hashing.

Reads hostile names and whatever is behind them; the person's file is opened for reading only.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from scaler_wizard.jobs.inbox import Entry, EntryKind

MAX_DEPTH = 16
MAX_ENTRIES = 100_000
BLOCK = 1 << 20
log = logging.getLogger(__name__)


class UnsettledError(Exception):
    """The file changed while it was copied: later again."""


def look_at(root: Path) -> list[Entry]:
    """Everything below the inbox but folders; links are named, never followed."""
    found: list[Entry] = []
    for entry in _walk(root, "", 0):
        found.append(entry)
        if len(found) >= MAX_ENTRIES:
            log.warning("the inbox holds more than %s files; the rest waits", f"{MAX_ENTRIES:,}")
            break
    return found


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[Entry]:
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except OSError:
        return  # removed or closed to us between two looks
    for child in children:
        path = prefix + child.name
        try:
            status = child.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode):
            if depth < MAX_DEPTH:
                yield from _walk(folder / child.name, path + "/", depth + 1)
            else:
                yield Entry(path, "deep", 0, status.st_mtime_ns)
            continue
        kind: EntryKind = "file" if stat.S_ISREG(status.st_mode) else "special"
        if stat.S_ISLNK(status.st_mode):
            kind = "link"
        yield Entry(path, kind, status.st_size, status.st_mtime_ns)


def open_below(root: Path, path: str) -> int:
    """A read-only descriptor of a regular file below `root`; no component may be a symbolic link.

    Raises:
        OSError: not there, a link on the way (ELOOP), or not a regular file.
    """
    parts = PurePosixPath(path).parts
    assert parts, "an empty path"
    assert not {"..", "/"} & set(parts), path
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    folder = os.open(root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            deeper = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = deeper
        # A named pipe put there since the look must not hold us up: it opens at once and is refused below.
        descriptor = os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return descriptor


def copy_in(root: Path, entry: Entry, target: Path, stop: Callable[[], bool]) -> str:
    """Copy a file of the inbox to `target`, durably, in blocks of 1 MiB; the SHA-256 (hex) of its bytes.

    Raises:
        UnsettledError: gone, changed before or during the copy, or `stop()`; `target` may be there in part.
        OSError: the copy cannot be written.
    """
    try:
        source = open_below(root, entry.path)
    except OSError as error:
        raise UnsettledError(str(error)) from None
    digest = hashlib.sha256()
    with os.fdopen(source, "rb", buffering=0) as file, target.open("xb", buffering=0) as copy:
        if not _same(file.fileno(), entry):
            raise UnsettledError
        while block := file.read(BLOCK):
            if stop() or copy.tell() + len(block) > entry.size:  # it grows as fast as it is read
                raise UnsettledError
            digest.update(block)
            view = memoryview(block)
            while view:
                view = view[copy.write(view) :]
        os.fsync(copy.fileno())
        if not _same(file.fileno(), entry) or copy.tell() != entry.size:
            raise UnsettledError
    return digest.hexdigest()


def _same(descriptor: int, entry: Entry) -> bool:
    status = os.fstat(descriptor)
    return (status.st_size, status.st_mtime_ns) == entry.signature
