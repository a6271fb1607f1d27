"""Step checkpoints without stopping the training: copied in memory here, written by a process beside us.

The worker only copies: tensors go into a shared buffer laid out as the files will be. One buffer is enough,
because a snapshot is taken only when the writer has nothing to do; else that checkpoint is left out. The
worker learns what became of a checkpoint at its next step. Knows no recipe and no training.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from scaler_wizard.errors import CheckpointError
from scaler_wizard.models.tensor_files import Files, image_of
from scaler_wizard.store.checkpoint_image import SharedBuffer
from scaler_wizard.store.checkpoint_writer import WriteAnswer, WriteRequest
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.lock import inherited_descriptors
from scaler_wizard.store.rundir import RunDir

MAX_STALL_SHARE = 0.01
"""Snapshots take at most this share of the time: a slow one makes the next one come later."""
MAX_DEATHS = 3


@dataclass(frozen=True)
class StepCheckpoint:
    """What became of one snapshot. `checkpoint` is empty where its writer was killed."""

    phase: str
    step: int
    checkpoint: str
    bytes: int
    snapshot_seconds: float
    """How long the training stood still."""
    write_seconds: float
    """How long the writer worked beside it."""


class StepCheckpoints:
    """The step checkpoints of one attempt. While the writer is busy, nobody else may use the store."""

    def __init__(
        self, run_dir: RunDir, attempt: int, every_sec: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.run_dir = run_dir
        self.every_sec = every_sec
        self._attempt = attempt
        self._clock = clock
        self._next = clock() + every_sec
        self._buffer: SharedBuffer | None = None
        self._writer: subprocess.Popen[bytes] | None = None
        self._pending: StepCheckpoint | None = None
        self._received = b""
        self._deaths = 0

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written, as far as was heard."""
        return self._pending is not None

    def due(self) -> bool:
        """Whether it is time for the next one and the writer is free."""
        return not self.busy and self._clock() >= self._next

    def restart_clock(self) -> None:
        """The next one is due a whole interval from now."""
        self._next = self._clock() + self.every_sec

    def begin(self, phase: str, step: int, capture: Callable[[], Files]) -> None:
        """Copy what `capture` names and hand it to the writer; returns when it is copied.

        Raises:
            CheckpointError: no memory for the copy, or no writer could be started.
        """
        assert not self.busy, "one checkpoint at a time: look at `due` or call `wait`"
        started = time.perf_counter()
        try:
            image = image_of(capture())
            self._buffer = self._buffer or SharedBuffer()
            image.write(self._buffer.view(image.size))
            writer = self._start_writer()
            seconds = time.perf_counter() - started
            request = WriteRequest(phase, step, image.size, image.parts, {"attempt": self._attempt})
            self._pending = StepCheckpoint(phase, step, "", image.size, seconds, 0.0)
            assert writer.stdin is not None
            writer.stdin.write(request.line())
        except BrokenPipeError:
            pass  # a writer that died is met when its answer is waited for
        except (OSError, MemoryError) as error:
            self._pending = None
            raise CheckpointError(
                f"the checkpoint of step {step} could not be copied ({error or type(error).__name__})",
                "memory for one copy of what is trained, and one more process",
                "free some memory, then resume; the earlier checkpoints are intact",
            ) from error
        self._next = self._clock() + max(self.every_sec, seconds / MAX_STALL_SHARE)

    def poll(self) -> StepCheckpoint | None:
        """The checkpoint under way, once its fate is known; None before.

        Raises:
            CheckpointError: the disk refused it (the cause says how), or the writer keeps dying.
        """
        return self._collect(0.0) if self.busy else None

    def wait(self) -> StepCheckpoint | None:
        """As `poll`, but waits; None when there is nothing to wait for."""
        return self._collect(None) if self.busy else None

    def close(self) -> None:
        """Let the writer finish, and end it."""
        if self._writer is not None:
            self._end_writer()
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None
        self._pending = None

    def _collect(self, timeout: float | None) -> StepCheckpoint | None:
        assert self._writer is not None
        assert self._writer.stdout is not None
        assert self._pending is not None
        descriptor = self._writer.stdout.fileno()
        while b"\n" not in self._received:
            if not select.select([descriptor], [], [], timeout)[0]:
                return None
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return self._bury()
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        answer, pending = WriteAnswer.parse(line), self._pending
        self._pending, self._deaths = None, 0
        error = answer.error()
        if error is not None:
            raise error from error.__cause__
        return StepCheckpoint(
            pending.phase, pending.step, answer.checkpoint, pending.bytes, pending.snapshot_seconds,
            answer.seconds,
        )  # fmt: skip

    def _bury(self) -> StepCheckpoint:
        """The writer died: what it staged is garbage, and the next checkpoint gets a new one."""
        assert self._pending is not None
        lost, self._pending = self._pending, None
        code = self._end_writer()
        self._deaths += 1
        CheckpointStore(self.run_dir).sweep()
        if self._deaths >= MAX_DEATHS:
            raise CheckpointError(
                f"the process that writes checkpoints died {self._deaths} times in a row (exit code {code})",
                "a writer that lives",
                "look for what kills it (memory limits, dmesg), then resume; the earlier checkpoints "
                "are intact",
            )
        return lost

    def _start_writer(self) -> subprocess.Popen[bytes]:
        if self._writer is None:
            assert self._buffer is not None
            buffer = self._buffer.fileno()
            # The lock goes along: no later attempt starts while a commit of this one is under way.
            self._writer = subprocess.Popen(
                [
                    sys.executable, "-m", "scaler_wizard.store.checkpoint_writer", str(self.run_dir.path),
                    str(buffer),
                ],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                pass_fds=[buffer, *inherited_descriptors(self.run_dir.lock)],
            )  # fmt: skip
        return self._writer

    def _end_writer(self) -> int:
        assert self._writer is not None
        writer, self._writer, self._received = self._writer, None, b""
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.close()
        code = writer.wait()
        writer.stdout.close()
        return code
