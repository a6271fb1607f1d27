"""Who owns the workspace, and who owns a run: two flocks with the owner's name beside them.

The kernel's flock decides, never the owner text: it ends with the last descriptor, so a killed process,
a reused process id or a reboot leaves nothing to clean up. The text is only for the message.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scaler_wizard.errors import WorkspaceBusyError, WorkspaceError

_MAX_OWNER_BYTES = 4096
# `is_locked` takes the lock for an instant; an owner that meets it tries again for this long.
_GRACE_SECONDS = 0.2


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    pid: int
    boot_id: str
    started: float
    command: str


def boot_id() -> str:
    """The kernel's identifier of this boot, or "" where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class _FileLock:
    what = "lock"
    inheritable = False

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, path: Path, command: str | None = None) -> Self:
        """Take the lock or raise.

        Raises:
            WorkspaceBusyError: another process holds it; names its pid and command.
            WorkspaceError: the file cannot be opened.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise WorkspaceError(
                f"cannot open {path} ({error.strerror})", "a folder you may write to", "check its permissions"
            ) from error
        if not _try_lock(descriptor):
            os.close(descriptor)
            raise cls._busy(path)
        os.set_inheritable(descriptor, cls.inheritable)
        started = Owner(os.getpid(), boot_id(), time.time(), command or " ".join(sys.argv)[:500])
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(started)).encode()[:_MAX_OWNER_BYTES], 0)
        return cls(path, descriptor)

    def fileno(self) -> int:
        """The descriptor that holds the lock."""
        assert self._descriptor is not None, "the lock was released"
        return self._descriptor

    def release(self) -> None:
        """Close this process's descriptor. A descendant that inherited it still holds the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @classmethod
    def _busy(cls, path: Path) -> WorkspaceBusyError:
        owner = read_owner(path)
        who = f"process {owner.pid} ({owner.command})" if owner else "another process"
        todo = "use that one, or stop it first"
        return WorkspaceBusyError(
            f"the {cls.what} {path.parent} is in use by {who}", "one owner at a time", todo
        )


class HostLock(_FileLock):
    """One host process per workspace. Children started by `subprocess` do not inherit it."""

    what = "workspace"


class RunLock(_FileLock):
    """One worker, with all its descendants, per run directory.

    The descriptor is inheritable: start the worker with `pass_fds=[lock.fileno()]` and `release()` here,
    and the lock lasts until the worker's last descendant is gone, also one that left its session.
    """

    what = "run directory"
    inheritable = True


class DeviceLock(_FileLock):
    """One worker, with all its descendants, per device of a workspace; inherited like `RunLock`."""

    what = "device"
    inheritable = True

    @classmethod
    def _busy(cls, path: Path) -> WorkspaceBusyError:
        owner = read_owner(path)
        who = f"{owner.command} (started by process {owner.pid})" if owner else "another worker"
        name = path.stem.removeprefix("device-")
        return WorkspaceBusyError(
            f"the device {name} is in use by {who}", "one worker on a device",
            "wait for it, or pause it first",
        )  # fmt: skip


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock at `path` now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_owner(path: Path) -> Owner | None:
    """What the last owner wrote, or None when that cannot be read. It may be long gone: ask `is_locked`."""
    try:
        with path.open("rb") as file:
            value: Any = json.loads(file.read(_MAX_OWNER_BYTES))
        return Owner(int(value["pid"]), str(value["boot_id"]), float(value["started"]), str(value["command"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _try_lock(descriptor: int) -> bool:
    deadline = time.monotonic() + _GRACE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True
