"""A file system that fails or loses power at a chosen call, for fault tests of the real code.

`FaultyFileSystem` really works on a directory. Beside it, it remembers what the disk is *obliged* to
have: a file's bytes as of its last fsync and a directory's names as of its last fsync. After a crash,
`power_loss` writes out one of the states that a disk may legally be found in. Files that others write
into the tree (a safetensors library, say) count as unsynced until they are fsynced here.
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Literal

from scaler_wizard.store.durable import OS

Fault = Literal["crash", "torn_crash", "ENOSPC", "EIO"]
Loss = Literal["none", "all_unsynced", "data", "names", "torn", "zeroed", "mixed"]
LOSSES: tuple[Loss, ...] = ("none", "all_unsynced", "data", "names", "torn", "zeroed", "mixed")


class SimulatedCrash(BaseException):
    """The process is gone. Not an Exception, so that no handler mistakes it for an error."""


class FaultyFileSystem:
    """Counts the calls of the `FileSystem` protocol and injects one fault at call `fail_at` (from 0).

    "crash" stops before the call; "torn_crash" after half of the call's bytes; from then on every call
    raises `SimulatedCrash`, since a dead process does not clean up. "ENOSPC" and "EIO" raise that error
    once, after half of a write's bytes.
    """

    def __init__(self, root: Path, fail_at: int | None = None, fault: Fault = "crash") -> None:
        self.root = root
        self.fail_at = fail_at
        self.fault = fault
        self.calls: list[str] = []
        self.crashed = False
        self._data: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        # An open descriptor per inode: a freed inode number would be given to the next new file.
        self._pins: dict[int, int] = {}
        for parent, _, files in os.walk(root):
            for name in files:
                self._remember(Path(parent, name))
            self._remember(Path(parent))

    def mkdir(self, path: Path) -> None:
        self._enter("mkdir", path)
        OS.mkdir(path)

    def write(self, path: Path, data: bytes | memoryview) -> None:
        self._enter("write", path, data)
        OS.write(path, data)

    def append(self, path: Path, data: bytes) -> None:
        self._enter("append", path, data)
        OS.append(path, data)

    def fsync(self, path: Path) -> None:
        self._enter("fsync", path)
        self._remember(path)

    def rename(self, old: Path, new: Path) -> None:
        self._enter("rename", old)
        OS.rename(old, new)

    def remove_tree(self, path: Path) -> None:
        self._enter("remove_tree", path)
        OS.remove_tree(path)

    def close(self) -> None:
        """Let go of the inodes."""
        for descriptor in self._pins.values():
            os.close(descriptor)
        self._pins.clear()

    def power_loss(self, target: Path, loss: Loss, rng: random.Random) -> None:
        """Write into the new directory `target` what the disk may hold after a power cut now.

        "none": everything reached the disk (a killed process). "all_unsynced": nothing that was not
        synced did. "data" / "names": only the unsynced bytes / directory changes are lost. "torn" /
        "zeroed": unsynced files keep half their bytes / their length in zeros. "mixed": each file and
        each name decides for itself, by `rng`.
        """
        self._restore(self._pin(self.root), target, loss, rng)

    def _enter(self, call: str, path: Path, data: bytes | memoryview = b"") -> None:
        if self.crashed:
            raise SimulatedCrash
        number = len(self.calls)
        self.calls.append(f"{call} {path.relative_to(self.root)}")
        if number != self.fail_at:
            return
        if data and self.fault != "crash":
            (OS.append if call == "append" else OS.write)(path, bytes(data[: len(data) // 2]))
        if self.fault in ("crash", "torn_crash"):
            self.crashed = True
            raise SimulatedCrash
        code = getattr(errno, self.fault)
        raise OSError(code, os.strerror(code), str(path))

    def _pin(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        inode = os.fstat(descriptor).st_ino
        if inode in self._pins:
            os.close(descriptor)
        else:
            self._pins[inode] = descriptor
        return inode

    def _remember(self, path: Path) -> None:
        inode = self._pin(path)
        if path.is_dir():
            self._names[inode] = {entry.name: self._pin(Path(entry.path)) for entry in os.scandir(path)}
        else:
            self._data[inode] = path.read_bytes()

    def _restore(self, inode: int, target: Path, loss: Loss, rng: random.Random) -> None:
        if not Path(f"/proc/self/fd/{self._pins[inode]}").is_dir():
            target.write_bytes(self._surviving_bytes(inode, loss, rng))
            return
        target.mkdir()
        here = Path(f"/proc/self/fd/{self._pins[inode]}")
        current = {entry.name: self._pin(here / entry.name) for entry in os.scandir(self._pins[inode])}
        for name, child in self._surviving_names(inode, current, loss, rng).items():
            self._restore(child, target / name, loss, rng)

    def _surviving_names(
        self, inode: int, current: dict[str, int], loss: Loss, rng: random.Random
    ) -> dict[str, int]:
        synced = self._names.get(inode, {})
        if loss in ("all_unsynced", "names"):
            return synced
        if loss != "mixed":
            return current
        chosen = {name: rng.choice((synced, current)).get(name) for name in {**synced, **current}}
        return {name: child for name, child in chosen.items() if child is not None}

    def _surviving_bytes(self, inode: int, loss: Loss, rng: random.Random) -> bytes:
        size = os.fstat(self._pins[inode]).st_size
        current = os.pread(self._pins[inode], size, 0)
        synced = self._data.get(inode, b"")
        if current == synced or loss in ("none", "names"):
            return current
        options = {
            "data": synced,
            "all_unsynced": synced,
            "torn": current[: size // 2],
            "zeroed": bytes(size),
        }
        if loss == "mixed":
            return rng.choice([current, *options.values()])
        return options[loss]
