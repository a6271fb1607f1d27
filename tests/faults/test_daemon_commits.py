"""kill -9 of the daemon at each commit of its database, its worker left alive or killed with it.

The daemon is the real one; its worker is quick_worker.py, so that a life takes a second. Whatever the
instant, the file is learned once, by one worker where that one was left alive, and every hash holds.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.store.workspace import Workspace

SOURCE = Path(__file__).resolve().parents[2] / "src"
LIVES = Path(__file__).with_name("daemon_lives.py")
SEED = int(os.environ.get("SCALER_FAULT_SEED", random.SystemRandom().randrange(1 << 32)))
COMMITS = 16
"""Writing commits of a daemon that learns one file, as the first test counts them."""
ITEM_SEC = 60.0
Item = tuple[int | None, str, bool]


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: a Unix socket's address has 107 bytes, and it is to be in the workspace.
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        yield Path(name)


def lives(folder: Path, plan: list[Item]) -> list[dict[str, Any]]:
    """What was found after each item of a plan, see daemon_lives.py."""
    done = subprocess.run(
        [sys.executable, str(LIVES), str(folder), json.dumps(plan)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)}, capture_output=True, text=True,
        timeout=ITEM_SEC * (len(plan) + 1), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: dict[str, Any]) -> None:
    """Learned once, nothing damaged, nothing left; by one worker unless that one was killed."""
    said = f"{found} (seed {SEED})"
    for name in ("lost", "double", "corrupt", "stuck"):
        assert found[name] == [], said
    assert found["completed"] == 1, said
    assert found["starts"] <= (2 if found["both"] else 1), said


def test_a_daemon_that_is_left_alone_makes_as_many_commits_as_are_tried(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = lives(folder, [(None, "before", False)])
    check(found)
    # Heartbeats that are written now and then, and the order of threads, add or save one or two.
    assert abs(found["commits"] - COMMITS) <= 3, found
    monkeypatch.syspath_prepend(str(SOURCE.parent / "scripts"))
    the_audit_finds_what_is_planted(Workspace.open(folder / "0"))


def the_audit_finds_what_is_planted(space: Workspace) -> None:
    """An audit that finds nothing proves nothing unless it finds what is there."""
    audit = importlib.import_module("soak_audit").audit
    dropped = {hashlib.sha256((space.inbox / "rows.jsonl").read_bytes()).hexdigest(): ["rows.jsonl"]}
    clean = audit(space, dropped, [])
    assert (clean.lost, clean.double, clean.corrupt, clean.stuck) == ((), (), (), ())

    assert len(audit(space, {**dropped, "0" * 64: []}, []).lost) == 1, "dropped and never taken"
    assert audit(space, dropped, [os.getpid()]).stuck == (f"process {os.getpid()} is left",)
    for pattern in (
        "inbox/rows.jsonl", "models/*/v001/adapter/adapter_model.safetensors",
        "runs/*/checkpoints/P1-*/weights.txt", "logs/flight_log.jsonl",
    ):  # fmt: skip
        (victim,) = space.root.glob(pattern)
        whole = victim.read_bytes()
        victim.write_bytes(whole[:-2] + b"?" + whole[-1:])
        assert len(audit(space, dropped, []).corrupt) == 1, pattern
        victim.write_bytes(whole)
    with sqlite3.connect(space.root / "state.db") as connection:
        connection.execute("UPDATE versions SET parent_id = NULL, status = 'superseded'")
    connection.close()
    assert len(audit(space, dropped, []).lost) == 1, "completed, and in no line"
    with sqlite3.connect(space.root / "state.db") as connection:
        connection.execute("UPDATE runs SET status = 'running'")
    connection.close()
    assert len(audit(space, dropped, []).stuck) == 1


def test_the_daemon_killed_at_seeded_commits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    plan: list[Item] = [
        (commit, rng.choice(("before", "after")), number % 2 == 1)
        for number, commit in enumerate(sorted(rng.sample(range(COMMITS - 2), 6)))
    ]
    with capsys.disabled():
        print(f"\n[faults] daemon killed at commits {plan} (seed {SEED})", end="")
    results = lives(folder, plan)
    assert len(results) == len(plan)
    for found in results:
        assert found["endings"][0] == -9, found
        check(found)


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["daemon", "daemon and worker"])
@pytest.mark.parametrize("instant", ["before", "after"])
def test_the_daemon_killed_at_every_commit(folder: Path, instant: str, both: bool) -> None:
    results = lives(folder, [(commit, instant, both) for commit in range(COMMITS + 2)])
    assert len(results) == COMMITS + 2
    for found in results:
        check(found)
    assert sum(found["endings"][0] == -9 for found in results) >= COMMITS - 3
