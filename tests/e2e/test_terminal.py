"""`scaler` in a real terminal: a pseudo-terminal on one side, `scaler` with real training on the other."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir

SOURCE = Path(__file__).resolve().parents[2] / "src"
SCALER = [sys.executable, "-m", "scaler_wizard.cli.main"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Generous: the machine may be shared. What is waited for ends the wait.
PATIENCE_SEC = 120.0
JOB = """\
name: tiny
model: {base_model: seedling}
scaling: {strategy: lora, target_context: 256, rope_method: yarn, lora: {rank: 4}}
training: {max_steps: %(steps)d, context_steps: 4, batch_tokens: 512, learning_rate: 0.001}
dataset: {source: synthetic, identifier: seedling, max_rows: 200}
evaluation: {documents: 8, needles_per_depth: 4, task_rows: 8, target_tokens: 16}
export: {merged: false}
"""


class Terminal:
    """One `scaler` command in a pseudo-terminal of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.master, side = pty.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            [*SCALER, *arguments], stdin=side, stdout=side, stderr=side, cwd=folder, env=environment(folder),
            start_new_session=True,
        )  # fmt: skip
        os.close(side)

    def wait_for(self, pattern: str, seconds: float = PATIENCE_SEC) -> str:
        """Read until `pattern` has appeared; returns all the text so far, without escape sequences."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"{pattern!r} did not appear in:\n{self.text[-4000:]}")
        return self.text

    def _read(self) -> bool:
        ready, _, _ = select.select([self.master], [], [], 1.0)
        if not ready:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the other side is closed
            return False
        self.text += ESCAPES.sub("", data.decode(errors="replace"))
        return bool(data)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C as the terminal sends it: to the command, whose worker is in a session of its own."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds: float = PATIENCE_SEC) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + seconds
        while self._read() and time.monotonic() < deadline:
            pass
        return self.process.wait(timeout=10)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": str(SOURCE), "SCALER_WORKSPACE": str(folder / "ws"), "TERM": "xterm",
        "COLUMNS": "160", "LINES": "50", "OMP_NUM_THREADS": "1", "HOME": str(folder),
    }  # fmt: skip


def scaler(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A second process without a terminal."""
    return subprocess.run(
        [*SCALER, *arguments], capture_output=True, text=True, cwd=folder, env=environment(folder),
        check=False, timeout=PATIENCE_SEC,
    )  # fmt: skip


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(tmp_path, *arguments))
        return opened[-1]

    yield start
    for each in opened:
        each.close()
    for lock in (tmp_path / "ws" / "runs").glob("*/run.lock"):
        owner = json.loads(lock.read_text() or "{}").get("pid")
        assert owner is None or not workers_of(lock.parent), "a worker was left behind"


def workers_of(run: Path) -> list[int]:
    """Worker processes of that run directory; killed, so that a failing test leaves none."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"scaler_wizard.recipes.worker" in words and os.fsencode(run) in words:
            found.append(int(entry.parent.name))
            os.kill(found[-1], signal.SIGKILL)
    return found


def signed(folder: Path, steps: int = 4) -> None:
    (folder / "job.yaml").write_text(JOB % {"steps": steps})
    done = scaler(
        folder, "sign", "job.yaml", "--by", "A Person", "--accept", "I accept responsibility for this run"
    )
    assert done.returncode == 0, done.stderr


def test_a_run_with_gates_answered_here_and_from_elsewhere(
    tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    signed(tmp_path)
    screen = terminal("run", "job.yaml")
    screen.wait_for(r"GATE P2: Ready to expand context 128 -> 256")
    screen.wait_for(r"\[a\]pprove")
    screen.type("what?\n")
    screen.type("a\n")
    screen.wait_for(r"gate P2: approve")
    screen.wait_for(r"GATE P(3|4)")
    shown = scaler(tmp_path, "runs", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout.splitlines()[-1])["status"] == "waiting"
    approved = scaler(tmp_path, "approve", "tiny-0001", "--reason", "looks right")
    assert approved.returncode == 0, approved.stderr
    assert "approve: noted for gate" in approved.stdout
    assert screen.end() == 0, screen.text[-3000:]
    assert "run completed" in screen.text

    back = scaler(tmp_path, "rollback", "latest", "--to-phase", "1")
    assert "Rollback complete; you are now at phase 1" in back.stdout, back.stderr
    run_dir = RunDir(tmp_path / "ws" / "runs" / "tiny-0001")
    assert CheckpointStore(run_dir).head().parent == "P1-0002"
    undone = scaler(tmp_path, "rollback", "--undo", "--json")
    assert "Undo complete" in json.loads(undone.stdout.splitlines()[-1])["message"]
    watched = scaler(tmp_path, "watch")
    assert watched.returncode == 0
    assert "Rollback complete; you are now at phase 1" in watched.stdout or "run completed" in watched.stdout


@pytest.mark.slow
def test_ctrl_c_pauses_and_resume_continues_at_the_next_step(
    tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    """With what is slow left out: the run is ended at its first gate."""
    signed(tmp_path, steps=60)
    screen = terminal("run", "job.yaml")
    screen.wait_for(r"\[P1\] training")
    screen.interrupt()
    assert screen.end() == 20, screen.text[-3000:]
    assert "pausing after this step" in screen.text
    assert "run paused" in screen.text
    run_dir = RunDir(tmp_path / "ws" / "runs" / "tiny-0001")
    before = [event.step for event in run_dir.read_events() if event.type == "step"]
    again = terminal("resume")
    again.wait_for(r"continuing after P1-")
    again.wait_for(r"\[a\]pprove")
    again.type("b\n")
    assert again.end() == 21, again.text[-3000:]
    steps = [event.step for event in run_dir.read_events() if event.type == "step"]
    assert 0 < len(before) < 60
    assert steps == list(range(1, 61)), "no step twice, none left out"


@pytest.mark.slow
def test_pause_resume_and_watch_from_a_second_terminal(
    tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    signed(tmp_path, steps=60)
    first = terminal("run", "job.yaml")
    first.wait_for(r"\[P1\] training")
    watching = terminal("watch")
    watching.wait_for(r"\[P1\] training")
    assert "sent to tiny-0001" in scaler(tmp_path, "pause", "--reason", "lunch").stdout
    assert first.end() == 20
    assert watching.end() == 0
    assert "run paused: lunch" in watching.text
    assert scaler(tmp_path, "approve").returncode == 7, "no worker waits"

    second = terminal("resume", "tiny-0001")
    second.wait_for(r"continuing after P1-")
    watching = terminal("watch", "tiny-0001")
    watching.wait_for(r"GATE P2")
    busy = scaler(tmp_path, "run", "job.yaml")
    assert busy.returncode == 7
    assert "in use by process" in busy.stderr
    watching.type("a\n")  # answered by who only watches
    second.wait_for(r"gate P2: approve")
    second.wait_for(r"(?s)GATE P4.*\[a\]pprove")
    second.type("r 1\n")
    assert second.end() == 20, second.text[-3000:]
    run_dir = RunDir(tmp_path / "ws" / "runs" / "tiny-0001")
    assert CheckpointStore(run_dir).head().parent is not None
    assert CheckpointStore(run_dir).chain()[-1].phase == "P1"


@pytest.mark.slow
def test_a_killed_host_leaves_a_worker_that_the_next_one_takes_over(
    tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    signed(tmp_path)
    first = terminal("run", "job.yaml")
    first.wait_for(r"\[P0\]")
    first.process.kill()
    first.process.wait()
    time.sleep(8)  # long enough for the worker to reach its gate alone
    second = terminal("resume")
    second.wait_for("taken over")
    second.wait_for(r"\[a\]pprove")
    deadline = time.monotonic() + 30
    while (done := scaler(tmp_path, "abort")).returncode and time.monotonic() < deadline:
        time.sleep(0.5)  # the worker tells its new host of the gate within a second
    assert done.returncode == 0, done.stderr
    assert second.end() == 21, second.text[-3000:]
    assert "stopped" in scaler(tmp_path, "runs", "list").stdout
