"""`scaler experts serve` as a person meets it: another process, a real port, Ctrl-C, a killed engine."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaler_wizard.serving.http import listen

COMMAND = (sys.executable, "-m", "scaler_wizard.cli.main", "experts", "serve")


def free_port() -> int:
    with listen("127.0.0.1", 0) as held:
        return int(held.getsockname()[1])


@contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    # Where the tests are run in the background Ctrl-C is ignored, which a child would inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*COMMAND, "--folder", str(folder), "--port", str(port), "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(port: int, token: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/", b'{"prompt": "Sort: b a"}', {"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    value = json.loads(answer.read())
    connection.close()
    return answer.status, value


def children(pid: int) -> list[int]:
    """Of all its threads."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for found in lists for child in found.read_text(encoding="ascii").split()]


def test_it_answers_comes_back_after_its_engine_was_killed_and_ends_with_ctrl_c(bundle_folder: Path) -> None:
    port = free_port()
    with serving(bundle_folder, port) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = json.loads(process.stdout.readline())
        assert said["url"] == f"http://127.0.0.1:{port}/"
        assert ask(port, "wrong")[0] == 401
        status, right = ask(port, said["token"])
        assert status == 200

        (engine,) = children(process.pid)
        os.kill(engine, signal.SIGKILL)
        assert "it is started again" in process.stderr.readline()
        status, refused = ask(port, said["token"])
        assert (status, refused["error"]) == (503, "WorkerDiedError")
        assert "ready again" in process.stderr.readline()
        assert ask(port, said["token"]) == (200, right)

        (engine,) = children(process.pid)
        # As a terminal does: to the whole group of the command, of which the engine is none.
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert (out, errors) == ("", ""), "no traceback, no half a line"
        assert not Path(f"/proc/{engine}").exists()


def test_ctrl_c_while_it_loads_ends_it_at_once(bundle_folder: Path) -> None:
    with serving(bundle_folder, free_port()) as process:
        until = time.monotonic() + 60
        while not children(process.pid) and time.monotonic() < until:
            time.sleep(0.02)
        (engine,) = children(process.pid)
        time.sleep(0.5)  # torch is being imported there, for seconds
        os.killpg(process.pid, signal.SIGINT)
        started = time.monotonic()
        out, errors = process.communicate(timeout=60)
        assert time.monotonic() - started < 8.0
        assert process.returncode == 130
        assert "Traceback" not in out + errors
        assert not Path(f"/proc/{engine}").exists()


def test_a_taken_port_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        ran = subprocess.run(
            [*COMMAND, "--folder", str(tmp_path / "none"), "--port", str(port), "--json"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert ran.returncode == 2
    assert "in use" in json.loads(ran.stdout.splitlines()[-1])["found"]
    assert "--port" in ran.stderr
