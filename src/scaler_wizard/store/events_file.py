"""events.jsonl: one writer that survives being killed in the middle of a line, and readers that cope.

Knows lines, sequence numbers and `specs.events`; not what the events mean.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pydantic import ValidationError

from scaler_wizard.errors import WorkspaceError
from scaler_wizard.specs.events import EVENT, Event
from scaler_wizard.store.durable import is_disk_full

MAX_LINE_BYTES = 1 << 20
# After these a person may pull the plug and expect what was said to be there. A step is not worth an
# fsync of 1-20 ms: the checkpoint, not the event, is what a run resumes from.
DURABLE_TYPES = frozenset(
    {"run_started", "phase_done", "gate_opened", "gate_closed", "rolled_back", "telegram", "run_ended"}
)


class EventWriter:
    """Appends events; one writer per file (the run lock sees to that).

    Opening it repairs what a killed writer left: an unfinished last line is completed when only its
    newline is missing, and else moved to `events.torn` beside the file.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open `path` (events.jsonl), creating it.

        Raises:
            WorkspaceError: the file cannot be opened or repaired.
        """
        self._path = path
        self._clock = clock
        try:
            is_new = not path.exists()
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o600)
            if is_new:
                _fsync_parent(path)
            _repair_tail(self._descriptor, path)
        except OSError as error:
            raise _unusable(path, error) from error
        self.next_seq = _last_seq(path) + 1

    def write(self, event: Event) -> Event:
        """Append `event` with its sequence number and time, and return it as written.

        Raises:
            WorkspaceError: disk full or failing; the file then ends where it did before.
        """
        stamped = event.model_copy(update={"seq": self.next_seq, "time": self._clock()})
        line = EVENT.dump_json(stamped) + b"\n"
        assert len(line) <= MAX_LINE_BYTES, f"an event of {len(line)} bytes"
        EVENT.validate_json(
            line
        )  # model_copy and Any fields are not validated: what is written must be readable
        end = os.fstat(self._descriptor).st_size
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(self._descriptor, view) :]
            if stamped.type in DURABLE_TYPES:
                os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            raise _unusable(self._path, error) from error
        self.next_seq += 1
        return stamped

    def close(self) -> None:
        """Sync and close."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EventReader:
    """Iterates over the whole lines of an event file. `skipped` counts lines that are not events."""

    def __init__(self, path: Path, from_seq: int = 0) -> None:
        self.path = path
        self.from_seq = from_seq
        self.skipped = 0

    def __iter__(self) -> Iterator[Event]:
        self.skipped = 0
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            yield from self.read(file)

    def read(self, file: BinaryIO) -> Iterator[Event]:
        """Events from `file`'s position to its last newline, where the position then stands."""
        while True:
            start = file.tell()
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line.endswith(b"\n"):
                if len(line) <= MAX_LINE_BYTES:  # the end, or a line still being written
                    file.seek(start)
                    return
                self.skipped += 1
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                continue
            event = _parse(line)
            if event is None:
                self.skipped += 1
            elif event.seq >= self.from_seq:
                yield event


def follow_events(
    path: Path, stop: Callable[[], bool], poll: float = 0.2, from_seq: int = 0
) -> Iterator[Event]:
    """Yield events as they appear; ends when `stop()` is true and the file has no more. `poll` in seconds."""
    reader = EventReader(path, from_seq)
    while not path.exists():
        if stop():
            return
        time.sleep(poll)
    with path.open("rb") as file:
        while True:
            ending = stop()  # asked before reading, so that nothing written before it is missed
            yield from reader.read(file)
            if ending:
                return
            time.sleep(poll)


def _parse(line: bytes) -> Event | None:
    try:
        return EVENT.validate_json(line)
    except ValidationError:
        return None


def _repair_tail(descriptor: int, path: Path) -> None:
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES))
    torn = tail[tail.rfind(b"\n") + 1 :]
    if not torn:
        return
    if _parse(torn) is not None:
        os.write(descriptor, b"\n")
        return
    with path.with_suffix(".torn").open("ab") as aside:
        aside.write(torn + b"\n")
        aside.flush()
        os.fsync(aside.fileno())
    os.ftruncate(descriptor, size - len(torn))
    os.fsync(descriptor)


def _last_seq(path: Path) -> int:
    """Highest sequence number in the file, 0 when there is none; looks at the end first."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LINE_BYTES))
        for line in reversed(file.read().split(b"\n")):
            event = _parse(line) if line else None
            if event is not None:
                return event.seq
    return max((event.seq for event in EventReader(path)), default=0)


def _fsync_parent(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, error: OSError) -> WorkspaceError:
    todo = (
        "free some space and resume the run" if is_disk_full(error) else "check the disk and the permissions"
    )
    return WorkspaceError(f"cannot write {path} ({error.strerror})", "a working disk with space", todo)
