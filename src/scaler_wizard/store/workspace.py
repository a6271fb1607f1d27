"""The folder a person owns: where everything lies, and how a run is found by its name.

Knows paths and names only; what is inside a run directory is `rundir`'s, the database `database`'s.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

from scaler_wizard.errors import RunNotFoundError, WorkspaceError
from scaler_wizard.store.durable import fsync_dir
from scaler_wizard.store.names import SAFE_NAME, safe_name
from scaler_wizard.store.rundir import RunDir

ENVIRONMENT_VARIABLE = "SCALER_WORKSPACE"
DATABASE_VARIABLE = "SCALER_DATABASE"
FOLDERS = ("runs", "models", "inbox", "templates", "logs")
# sun_path of a Unix socket address has 108 bytes with its end mark.
_MAX_SOCKET_BYTES = 107
_COUNTER = 5  # "-0001"


def default_root() -> Path:
    """$SCALER_WORKSPACE, else ~/scaler-workspace."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / "scaler-workspace"


class Workspace:
    """Paths of one workspace. Make one with `create` or `open`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "state.db"
        self.lock = root / "host.lock"
        self.runs = root / "runs"
        self.models = root / "models"
        self.inbox = root / "inbox"
        self.templates = root / "templates"
        self.logs = root / "logs"
        self.learned = root / "learned"
        self.flight_log = self.logs / "flight_log.jsonl"

    @classmethod
    def create(cls, root: Path | None = None) -> Workspace:
        """Make the workspace's folders where they are missing (mode 700) and return it.

        Raises:
            WorkspaceError: a file is in the way, or the place is not writable.
        """
        root = (root or default_root()).expanduser().absolute()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in FOLDERS:
                (root / folder).mkdir(mode=0o700, exist_ok=True)
            fsync_dir(root)
        except OSError as error:
            raise WorkspaceError(
                f"cannot make the workspace {root} ({error.strerror}: {error.filename})",
                "a folder you may write to",
                f"choose another one with --workspace or ${ENVIRONMENT_VARIABLE}",
            ) from error
        return cls.open(root)

    @classmethod
    def open(cls, root: Path | None = None) -> Workspace:
        """Return an existing workspace.

        Raises:
            WorkspaceError: it is not there, not complete, or not writable.
        """
        root = (root or default_root()).expanduser().absolute()
        missing = [folder for folder in FOLDERS if not (root / folder).is_dir()]
        if missing:
            found = (
                f"{root} has no {', '.join(missing)}" if root.is_dir() else f"there is no workspace at {root}"
            )
            raise WorkspaceError(
                found,
                "a workspace",
                "check --workspace, or make one with `scaler init` or `scaler daemon init`",
            )
        if not os.access(root, os.W_OK | os.X_OK):
            raise WorkspaceError(
                f"the workspace {root} is not writable", "write permission", f"chmod u+rwx {root}"
            )
        return cls(root)

    @property
    def vision_features(self) -> Path:
        """Folder of what vision towers made of pictures: a cache, which may be deleted."""
        return self.root / "cache" / "vision"

    @property
    def socket(self) -> Path:
        """Path of the host's Unix socket.

        host.sock in the workspace; where that is longer than the 107 bytes a socket address holds, a
        directory of mode 700 in the temporary folder, named by user id and a hash of the root.

        Raises:
            WorkspaceError: that directory belongs to someone else.
        """
        path = self.root / "host.sock"
        if len(os.fsencode(path)) <= _MAX_SOCKET_BYTES:
            return path
        digest = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:16]
        directory = Path(tempfile.gettempdir()) / f"scaler-{os.getuid()}-{digest}"
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise WorkspaceError(
                f"{directory} is not a private directory of yours",
                "a directory of mode 700 owned by you",
                "remove it, or use a workspace with a shorter path",
            )
        return directory / "host.sock"

    @property
    def database_address(self) -> Path | str:
        """Where the decisions are: state.db here, or the PostgreSQL URL in $SCALER_DATABASE.

        One database serves one workspace. Only the host reads this; workers never learn it.
        """
        return os.environ.get(DATABASE_VARIABLE) or self.database

    def device_lock(self, device: str) -> Path:
        """The lock file of a device ("cpu", "cuda", "cuda:1") that this workspace's workers share."""
        return self.root / f"device-{safe_name(device.replace(':', '-'), 'device')}.lock"

    def new_run_dir(self, name: str) -> RunDir:
        """Make runs/NAME-0001 (or the next free number) and return it, with its identity written.

        The number is claimed by mkdir, so two callers never get the same one. Names longer than 59
        characters are cut, so that the id is still a safe name.

        Raises:
            WorkspaceError: the name cannot be a file name, or the folder is not writable.
        """
        stem = safe_name(name, "run name")[: 64 - _COUNTER]
        pattern = re.compile(re.escape(stem) + r"-(\d{4,})")
        taken = [int(match[1]) for entry in self._run_ids() if (match := pattern.fullmatch(entry))]
        number = max(taken, default=0) + 1
        while True:
            try:
                return RunDir.create(self.runs / f"{stem}-{number:04d}", name)
            except FileExistsError:
                number += 1
            except OSError as error:
                raise WorkspaceError(
                    f"cannot make a run directory in {self.runs} ({error.strerror})",
                    "space and write permission",
                    "free some space or check the permissions",
                ) from error

    def run_dir(self, run_id: str) -> RunDir:
        """The run of that id, of that unique beginning of an id, or the newest one for "latest".

        Raises:
            RunNotFoundError: none, or several; the message names the nearest.
        """
        ids = self._run_ids()
        if run_id in ids:
            return RunDir(self.runs / run_id)
        if run_id == "latest" and ids:
            return max(
                (RunDir(self.runs / name) for name in ids), key=lambda run: (run.created(), run.path.name)
            )
        matches = [name for name in ids if run_id and name.startswith(run_id)]
        if len(matches) == 1:
            return RunDir(self.runs / matches[0])
        raise _not_found(run_id, ids, matches)

    def run_dirs(self) -> list[RunDir]:
        """Every run directory, oldest first."""
        runs = [RunDir(self.runs / name) for name in self._run_ids()]
        return sorted(runs, key=lambda run: (run.created(), run.path.name))

    def _run_ids(self) -> list[str]:
        with os.scandir(self.runs) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and SAFE_NAME.fullmatch(entry.name)
            )


def _not_found(run_id: str, ids: list[str], matches: list[str]) -> RunNotFoundError:
    shown = run_id if len(run_id) <= 80 else run_id[:77] + "..."
    if matches:
        listed = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
        return RunNotFoundError(
            f'"{shown}" is the beginning of {len(matches)} runs ({listed})', "one run", "add a character"
        )
    near = difflib.get_close_matches(shown, ids, n=1, cutoff=0.5)
    if near:
        return RunNotFoundError(
            f'there is no run "{shown}"', "a run of this workspace", f'did you mean "{near[0]}"?'
        )
    todo = "list them with `scaler runs list`" if ids else "start one with `scaler run`"
    return RunNotFoundError(f'there is no run "{shown}"', "a run of this workspace", todo)
