"""Leaving a daemon in the background, and waiting for one to end: by the workspace's lock."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from scaler_wizard.errors import RunError
from scaler_wizard.jobs.client import Client
from scaler_wizard.store.lock import HostLock, is_locked
from scaler_wizard.store.workspace import Workspace

START_PATIENCE_SEC = 60.0
POLL_SEC = 0.1
TAIL_BYTES = 4000


def start_detached(workspace: Workspace) -> int:
    """Start a daemon in a session of its own and wait until it answers; its process id.

    Raises:
        WorkspaceBusyError: the workspace has an owner; names its process id.
        RunError: it ended at once; says what it said.
    """
    HostLock.acquire(workspace.lock).release()  # refused with the owner's name, before anything is started
    output = workspace.logs / "daemon.out"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "scaler_wizard.cli.main", "daemon", "start", "-w", str(workspace.root)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    until = time.monotonic() + START_PATIENCE_SEC
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with Client(workspace) as client:
            if client.hosted and client.call("ping")["pid"] == process.pid:
                return process.pid
        time.sleep(POLL_SEC)
    said = output.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
    raise RunError(
        f"the daemon did not start: {said or 'it said nothing'}", "a daemon that answers",
        f"see {output} and {workspace.logs / 'daemon.log'}",
    )  # fmt: skip


def wait_until_free(workspace: Workspace, seconds: float) -> bool:
    """Whether nobody owns the workspace any more, within `seconds`."""
    until = time.monotonic() + seconds
    while is_locked(workspace.lock):
        if time.monotonic() > until:
            return False
        time.sleep(POLL_SEC)
    return True
