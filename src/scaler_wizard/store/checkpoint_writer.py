"""The process that writes step checkpoints: `python -m scaler_wizard.store.checkpoint_writer RUN_DIR FD`.

Reads one request a line on its standard input, commits the checkpoint from the shared buffer behind
descriptor FD, and answers with one line. It imports no torch, so that it starts at once and stays small; and
being a process it does not take the interpreter from the training as a thread would.

When the worker dies, the commit under way is finished and then the input ends: a snapshot in memory is work
done. The inherited run lock keeps every later attempt from starting before that.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.errors import CheckpointError, ScalerError
from scaler_wizard.store.checkpoint_image import ImagePart, commit_image, read_view
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir

NICENESS = 10
"""The training goes first where both want the same core."""


@dataclass(frozen=True)
class WriteRequest:
    """What to commit from the buffer."""

    phase: str
    step: int
    size: int
    """Bytes of the buffer in use."""
    parts: tuple[ImagePart, ...]
    extra: Mapping[str, Any]

    def line(self) -> bytes:
        """The request as one line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes | str) -> WriteRequest:
        """The request of a line; ValueError, KeyError or TypeError when it is none."""
        value = json.loads(line)
        parts = tuple(ImagePart(**part) for part in value["parts"])
        return cls(str(value["phase"]), int(value["step"]), int(value["size"]), parts, dict(value["extra"]))


@dataclass(frozen=True)
class WriteAnswer:
    """What became of it: the name of the committed checkpoint, or why there is none."""

    step: int
    seconds: float
    checkpoint: str = ""
    found: str = ""
    expected: str = ""
    todo: str = ""
    errno: int = 0
    """Of the disk's refusal, so that "full" and "failing" stay told apart."""

    def line(self) -> bytes:
        """The answer as one line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> WriteAnswer:
        """The answer of a line."""
        return cls(**json.loads(line))

    def error(self) -> CheckpointError | None:
        """The failure as it was raised over there, its OSError as the cause; None for a commit."""
        if self.checkpoint:
            return None
        error = CheckpointError(self.found, self.expected, self.todo)
        if self.errno:
            error.__cause__ = OSError(self.errno, os.strerror(self.errno))
        return error


def serve(
    store: CheckpointStore,
    requests: Iterable[bytes],
    image: Callable[[int], memoryview],
    answer: Callable[[bytes], object],
) -> None:
    """Commit one request after another, each answered before the next is read.

    Args:
        image: the buffer's first so many bytes.
    """
    for line in requests:
        request = WriteRequest.parse(line)
        started = time.perf_counter()
        try:
            with image(request.size) as view:
                made = commit_image(
                    store, request.phase, request.step, request.parts, view, extra=request.extra
                )
            result = WriteAnswer(request.step, time.perf_counter() - started, made.name)
        except ScalerError as error:
            cause = error.__cause__
            number = cause.errno or 0 if isinstance(cause, OSError) else 0
            seconds = time.perf_counter() - started
            result = WriteAnswer(request.step, seconds, "", error.found, error.expected, error.todo, number)
        answer(result.line())


def main(argv: list[str] | None = None) -> int:
    """Serve until the input ends."""
    folder, descriptor = sys.argv[1:] if argv is None else argv
    # The host turns a terminal's Ctrl-C into a pause; the worker waits for us then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # not allowed in some containers, and only a courtesy
        os.nice(NICENESS)
    # A worker that died does not hear the answer; the commit stands all the same.
    with contextlib.suppress(BrokenPipeError):
        serve(
            CheckpointStore(RunDir(Path(folder))),
            sys.stdin.buffer,
            lambda size: read_view(int(descriptor), size),
            lambda line: os.write(sys.stdout.fileno(), line),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
