"""What to do with what lies in the inbox: a pure decision over one look at the folder.

Knows names, sizes and times; reads nothing (`intake` looks, copies and checks). A file is taken once its size
and time have stood still for the settling time, by the monotonic clock: what the file's own time says about
yesterday or tomorrow decides nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

EntryKind = Literal["file", "link", "special", "deep"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
SIDECAR = ".json"
UNFINISHED = re.compile(
    r"^[.~].*|.*(~|\.(part|partial|filepart|crdownload|download|tmp|temp|swp|swx|lock))$", re.I
)
"""Hidden files, and names under which browsers, copy programs and editors write what is not finished."""
SAFE_CHARACTERS = re.compile(r"[^A-Za-z0-9._-]+")
MAX_NAME = 64
MAX_STEM = 40
NAMES = ", ".join(suffix[1:] for suffix in SUFFIXES)


@dataclass(frozen=True)
class Entry:
    """One thing in the inbox, at one look."""

    path: str
    """Relative to the inbox, with slashes; undecodable bytes as surrogates."""
    kind: EntryKind
    size: int
    mtime_ns: int

    @property
    def signature(self) -> tuple[int, int]:
        """What changes when the file does."""
        return self.size, self.mtime_ns

    @property
    def key(self) -> str:
        """SHA-256 over path, size and time: the same unchanged file has the same key after a restart."""
        text = f"{self.size}:{self.mtime_ns}:".encode() + os.fsencode(self.path)
        return hashlib.sha256(text).hexdigest()

    @property
    def shown(self) -> str:
        """The path as text for people: no control character, no undecodable byte, at most 200 characters."""
        return shown_name(self.path)


@dataclass(frozen=True)
class Noticed:
    """Since when a file has looked as it does."""

    signature: tuple[int, int]
    since: float
    """Monotonic seconds."""


@dataclass(frozen=True)
class Take:
    """A settled file, and the settled sidecar beside it."""

    entry: Entry
    sidecar: Entry | None = None


@dataclass(frozen=True)
class Refuse:
    """Something that is never taken, and why."""

    entry: Entry
    reason: str
    advice: str


@dataclass(frozen=True)
class Look:
    """What one look at the inbox leads to."""

    take: tuple[Take, ...] = ()
    """In the order in which the files were last written."""
    refuse: tuple[Refuse, ...] = ()
    noticed: Mapping[str, Noticed] = field(default_factory=dict)
    """To hand to the next look."""
    next_look: float | None = None
    """Seconds until the next unsettled file can have settled; None when nothing is unsettled."""


def decide(
    entries: Collection[Entry],
    noticed: Mapping[str, Noticed],
    known: Collection[str],
    now: float,
    settle_seconds: float,
) -> Look:
    """What to take and what to refuse.

    Args:
        noticed: `Look.noticed` of the look before; empty at the first one.
        known: keys of what was taken or refused before (`Entry.key`); neither happens twice.
        now: monotonic seconds.
        settle_seconds: how long size and time must have stood still.
    """
    candidates = [entry for entry in entries if not is_unfinished(entry.path)]
    sidecars = _sidecars(candidates)
    of_others = {entry.path for entry in sidecars.values()}
    fresh = {entry.path: _notice(entry, noticed, now) for entry in candidates}
    waits: list[float] = []
    take, refuse = [], []
    for entry in candidates:
        if entry.path in of_others or entry.key in known:
            continue
        sidecar = sidecars.get(entry.path)
        since = max(fresh[one.path].since for one in (entry, sidecar) if one is not None)
        left = since + settle_seconds - now
        problem = refusal(entry)
        if left > 0 and entry.kind == "file":
            waits.append(left)
        elif problem is not None:
            refuse.append(problem)
        elif entry.size == 0:
            refuse.append(Refuse(entry, "it is empty", "copy it again; it is taken as soon as it has bytes"))
        else:
            take.append(Take(entry, sidecar))
    take.sort(key=lambda one: (one.entry.mtime_ns, one.entry.path))
    return Look(tuple(take), tuple(refuse), fresh, min(waits, default=None))


def is_unfinished(path: str) -> bool:
    """Whether a part of the path is hidden or has the name of something still being written."""
    return any(UNFINISHED.fullmatch(part) for part in PurePosixPath(path).parts)


def refusal(entry: Entry) -> Refuse | None:
    """Why an entry is never taken, or None for a file that can be."""
    if entry.kind == "link":
        return Refuse(entry, "it is a symbolic link", "copy the file itself into the inbox")
    if entry.kind == "special":
        return Refuse(entry, "it is not a regular file", "put a data file there")
    if entry.kind == "deep":
        return Refuse(entry, "it lies too many folders deep", "put it nearer to the inbox")
    suffix = PurePosixPath(entry.path).suffix.lower()
    if suffix not in SUFFIXES:
        return Refuse(
            entry, f"its type {shown_name(suffix) or '(none)'} is not read", f"one of these is: {NAMES}"
        )
    return None


def file_name(path: str) -> str:
    """The name of the copy: one harmless path component that keeps the suffix, at most 64 characters."""
    name = PurePosixPath(path)
    suffix = name.suffix.lower()
    return run_name(path)[: MAX_NAME - len(suffix)] + suffix


def run_name(path: str) -> str:
    """The name of the file's run: its stem in letters, digits, dots, dashes and underscores."""
    stem = SAFE_CHARACTERS.sub("_", PurePosixPath(path).stem)[:MAX_STEM].strip("._-")
    return stem or "file"


def shown_name(path: str) -> str:
    """A hostile name as printable text of at most 200 characters."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= 200 else text[:99] + "..." + text[-98:]


def _notice(entry: Entry, noticed: Mapping[str, Noticed], now: float) -> Noticed:
    before = noticed.get(entry.path)
    if before is not None and before.signature == entry.signature:
        return before
    return Noticed(entry.signature, now)


def _sidecars(entries: Collection[Entry]) -> dict[str, Entry]:
    """Path of a data file -> the JSON beside it: rows.json or rows.jsonl.json beside rows.jsonl."""
    files = {entry.path: entry for entry in entries if entry.kind == "file"}
    found = {}
    for entry in files.values():
        path = PurePosixPath(entry.path)
        if path.suffix.lower() == SIDECAR or path.suffix.lower() not in SUFFIXES:
            continue
        names = (str(path) + SIDECAR, str(path.with_suffix(SIDECAR)))
        sidecar = next((files[name] for name in names if name in files), None)
        if sidecar is not None:
            found[entry.path] = sidecar
    return found
