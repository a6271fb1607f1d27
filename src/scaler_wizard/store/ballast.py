"""A file that only takes up space: given up on a full disk, so that the database can still commit.

On a disk with nothing free not even "this job is paused" can be written down. Knows no job and no database.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from scaler_wizard.errors import ScalerError
from scaler_wizard.store.durable import is_disk_full

_Result = TypeVar("_Result")
# It is taken again only where this many times its size is free: else it would itself fill the disk.
ROOM = 4
MIB = 1 << 20


class Ballast:
    """The reserve of one workspace."""

    def __init__(self, folder: Path, megabytes: float) -> None:
        self.path = folder / ".ballast"
        self.n_bytes = int(megabytes * MIB)

    def is_held(self) -> bool:
        """Whether the space is reserved in full; always True where none is wanted."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return self.n_bytes == 0
        return status.st_size >= self.n_bytes and status.st_blocks * 512 >= self.n_bytes

    def reserve(self, free_bytes: int | None = None) -> bool:
        """Take the space where enough is free; returns whether it is held now.

        Args:
            free_bytes: free space as the caller measured it; measured here when None.
        """
        if self.is_held():
            return True
        free = shutil.disk_usage(self.path.parent).free if free_bytes is None else free_bytes
        if free < ROOM * self.n_bytes:
            return False
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                # Real blocks, not a hole: a sparse file would free nothing when it is given up.
                block = os.urandom(MIB)
                for start in range(0, self.n_bytes, MIB):
                    os.pwrite(descriptor, block[: min(MIB, self.n_bytes - start)], start)
                os.ftruncate(descriptor, self.n_bytes)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            self.release()
            return False
        return self.is_held()

    def release(self) -> bool:
        """Give the space up; returns whether there was any."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
            return True
        return False

    def guard(self, call: Callable[[], _Result]) -> _Result:
        """Do `call`; when the disk is full, give the space up and try once more.

        Only for calls that change nothing when they fail, such as one transaction.
        """
        try:
            return call()
        except (ScalerError, OSError) as error:
            if not disk_is_full(error) or not self.release():
                raise
        return call()


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk caused `error`: by its number, or as SQLite says it."""
    if is_disk_full(error):
        return True
    while error is not None:
        if "disk is full" in str(error):
            return True
        error = error.__cause__
    return False
