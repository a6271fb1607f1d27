"""The flight log: one line per phase end, decision, rollback and signature, each hashing the line before.

A changed, deleted, inserted or moved line breaks the chain at that place. Cutting lines off the end does
not, by itself: the newest hash also stands in the cockpit payload's audit field. Not encryption, not a
signature: whoever can write the file can also write a whole new chain.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.errors import WorkspaceError
from scaler_wizard.store.durable import json_text

GENESIS = "0" * 64
MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class FlightLogCheck:
    """Outcome of `verify`."""

    ok: bool
    lines: int
    """Lines that are right, counted from the start."""
    first_bad_line: int | None
    """Number of the first wrong line, from 1."""
    last_hash: str
    """Hash of the last right line."""


def append(path: Path, kind: str, run: str, data: Mapping[str, Any], now: float | None = None) -> str:
    """Append one entry durably and return its hash. Appenders take turns by a lock on the file.

    An unfinished last line (a process killed in the middle of it) is moved to flight_log.torn first.

    Raises:
        WorkspaceError: the file cannot be written.
    """
    try:
        is_new = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            previous = _set_torn_aside(descriptor, path)
            when = time.time() if now is None else now
            line = _line(previous, when, kind, run, json.loads(json_text(data)))
            _write_line(descriptor, line)
            if is_new:
                _fsync(path.parent)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise WorkspaceError(
            f"cannot write the flight log {path} ({error.strerror})",
            "a working disk with space",
            "free some space",
        ) from error
    return _hash(line)


def verify(path: Path) -> FlightLogCheck:
    """Check the whole chain, in bounded memory. A log that does not exist is right and empty."""
    previous, lines = GENESIS, 0
    if not path.exists():
        return FlightLogCheck(True, 0, None, previous)
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if not _is_right(line, previous):
                return FlightLogCheck(False, lines, lines + 1, previous)
            previous, lines = _hash(line), lines + 1
    return FlightLogCheck(True, lines, None, previous)


def read_entries(path: Path, limit: int = 1000) -> list[dict[str, Any]]:
    """The last `limit` entries that can be read, oldest first; `verify` tells whether to believe them."""
    entries: list[dict[str, Any]] = []
    if not path.exists():
        return entries
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            entry = _parse(line)
            if entry is not None:
                entries.append(entry)
                del entries[:-limit]
    return entries


def _line(previous: str, when: float, kind: str, run: str, data: Mapping[str, Any]) -> bytes:
    body = {"prev": previous, "time": when, "kind": kind, "run": run, "data": data}
    return json.dumps({**body, "hash": _body_hash(body)}).encode() + b"\n"


def _is_right(line: bytes, previous: str) -> bool:
    entry = _parse(line)
    if entry is None or entry.get("prev") != previous or not line.endswith(b"\n"):
        return False
    try:
        # Written again and compared as bytes: the same JSON in other words is a change too.
        return line == _line(previous, entry["time"], entry["kind"], entry["run"], entry["data"])
    except KeyError:
        return False


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _hash(line: bytes) -> str:
    return hashlib.sha256(line.rstrip(b"\n")).hexdigest()


def _body_hash(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _set_torn_aside(descriptor: int, path: Path) -> str:
    """Repair the end of the file and return the hash of its last whole line."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 2 * MAX_LINE_BYTES, max(0, size - 2 * MAX_LINE_BYTES))
    whole = tail[: tail.rfind(b"\n") + 1]
    torn = tail[len(whole) :]
    if torn:
        with path.with_suffix(".torn").open("ab") as aside:
            aside.write(torn + b"\n")
            aside.flush()
            os.fsync(aside.fileno())
        os.ftruncate(descriptor, size - len(torn))
    return _hash(whole[:-1].rpartition(b"\n")[2]) if whole else GENESIS


def _write_line(descriptor: int, line: bytes) -> None:
    assert len(line) <= MAX_LINE_BYTES, f"a flight log entry of {len(line)} bytes"
    end = os.fstat(descriptor).st_size
    try:
        view = memoryview(line)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def _fsync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
