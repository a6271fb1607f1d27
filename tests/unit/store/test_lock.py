import json
import os
import signal
import subprocess
import sys
import time

import pytest

from scaler_wizard.errors import WorkspaceBusyError, WorkspaceError
from scaler_wizard.store.lock import HostLock, RunLock, boot_id, is_locked, read_owner

HOLD = (
    "import sys, time; from pathlib import Path; from scaler_wizard.store.lock import HostLock\n"
    "lock = HostLock.acquire(Path(sys.argv[1]), 'scaler daemon'); print('held', flush=True); time.sleep(60)"
)


def test_second_owner_is_told_who_the_first_is_and_kill_releases(tmp_path):
    path = tmp_path / "host.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert is_locked(path)
    with pytest.raises(WorkspaceBusyError, match=rf"process {holder.pid} \(scaler daemon\)"):
        HostLock.acquire(path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert not is_locked(path)
    with HostLock.acquire(path, "mine"):
        owner = read_owner(path)
        assert (owner.pid, owner.command, owner.boot_id) == (os.getpid(), "mine", boot_id())
    assert not is_locked(path)


def test_owner_text_of_a_living_process_does_not_lock(tmp_path):
    """Process id reuse: the text names a process that lives (this one), the flock is free."""
    path = tmp_path / "host.lock"
    path.write_text(json.dumps({"pid": os.getpid(), "boot_id": boot_id(), "started": 0, "command": "old"}))
    with HostLock.acquire(path, "new"):
        assert read_owner(path).command == "new"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\xff"])
def test_damaged_owner_text_is_harmless(tmp_path, text):
    path = tmp_path / "host.lock"
    path.write_text(text)
    assert read_owner(path) is None
    with HostLock.acquire(path), pytest.raises(WorkspaceBusyError):
        HostLock.acquire(path)


def test_run_lock_lasts_until_the_last_descendant_is_gone(tmp_path):
    path = tmp_path / "run.lock"
    lock = RunLock.acquire(path)
    # The worker starts a grandchild in its own session and leaves at once.
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True,"
        " pass_fds=[int(sys.argv[1])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)"
    )
    fd = lock.fileno()
    worker = subprocess.run(
        [sys.executable, "-c", code, str(fd)], pass_fds=[fd], capture_output=True, text=True, check=True
    )
    lock.release()
    grandchild = int(worker.stdout)
    assert is_locked(path)
    os.kill(grandchild, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_locked(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_locked(path)


def test_unusable_lock_file(tmp_path):
    with pytest.raises(WorkspaceError, match="cannot open"):
        HostLock.acquire(tmp_path / "none" / "host.lock")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorkspaceError):
        HostLock.acquire(tmp_path / "link")
    assert not is_locked(tmp_path / "nothing")
