"""A checkpoint's files side by side in memory that two processes share, and their way onto the disk.

The memory is a file without a name: it takes no disk, both processes map it, and the kernel frees it when the
last of them ends, however it ends. Knows bytes, not tensors.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.store.checkpoints import CheckpointStore, Staging, write_failed
from scaler_wizard.store.names import safe_name

# Tensors start on cache lines, and the kernel copies whole pages.
ALIGNMENT = 4096


@dataclass(frozen=True)
class ImagePart:
    """One file: its name relative to the checkpoint, and where its bytes are in the buffer."""

    name: str
    offset: int
    bytes: int


def place(sizes: Mapping[str, int]) -> tuple[tuple[ImagePart, ...], int]:
    """(parts in order of name, bytes of the whole buffer) for files of these sizes."""
    parts: list[ImagePart] = []
    end = 0
    for name in sorted(sizes):
        parts.append(ImagePart(name, end, sizes[name]))
        end += -(-sizes[name] // ALIGNMENT) * ALIGNMENT
    return tuple(parts), end


class SharedBuffer:
    """Anonymous shared memory that grows; `fileno()` is what the other process maps."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("scaler-checkpoint", os.MFD_CLOEXEC)
        else:  # not Linux: a file whose name is gone at once
            with tempfile.TemporaryFile() as file:
                self._descriptor = os.dup(file.fileno())
        self._map: mmap.mmap | None = None

    def fileno(self) -> int:
        """The descriptor to hand to the other process."""
        return self._descriptor

    def view(self, size: int) -> memoryview:
        """At least `size` writable bytes; the same memory every time, until more is asked for.

        Raises:
            OSError: the system has no memory for it.
        """
        if self._map is None or len(self._map) < size:
            # The old map goes when the last view of it does.
            os.ftruncate(self._descriptor, max(size, ALIGNMENT))
            # Without this a machine out of memory would kill the first to touch a page.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, max(size, ALIGNMENT))
            self._map = mmap.mmap(self._descriptor, max(size, ALIGNMENT))
        return memoryview(self._map)

    def close(self) -> None:
        """Let go; the memory is freed when the other process has let go too."""
        self._map = None
        os.close(self._descriptor)


def read_view(descriptor: int, size: int) -> memoryview:
    """The first `size` bytes of a buffer, to be read only."""
    return memoryview(mmap.mmap(descriptor, max(size, ALIGNMENT), prot=mmap.PROT_READ))


def commit_image(
    store: CheckpointStore,
    phase: str,
    step: int,
    parts: Sequence[ImagePart],
    image: memoryview,
    extra: Mapping[str, object] | None = None,
) -> Checkpoint:
    """Write the parts out and commit them as a step checkpoint of `phase`; older step checkpoints may go.

    Raises:
        CheckpointError: the disk is full or failing; its cause is the OSError. The earlier checkpoints are
            as they were, and this one is not retried.
    """
    with store.stage(phase) as staging:
        try:
            _write_parts(store, staging, parts, image)
        except OSError as error:
            raise write_failed(phase, error) from error
        checkpoint = staging.commit(step=step, kind="step", extra=extra)
    with contextlib.suppress(OSError):  # an old checkpoint that stays harms nobody
        store.prune()
    return checkpoint


def _write_parts(
    store: CheckpointStore, staging: Staging, parts: Sequence[ImagePart], image: memoryview
) -> None:
    made: set[Path] = set()
    for part in parts:
        path = staging.path
        *folders, last = part.name.split("/")
        for folder in folders:
            path = path / safe_name(folder, "folder of a checkpoint")
            if path not in made:
                store.fs.mkdir(path)
                made.add(path)
        store.fs.write(
            path / safe_name(last, "file of a checkpoint"), image[part.offset : part.offset + part.bytes]
        )
