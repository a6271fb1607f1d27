"""A real daemon in a process of its own, its inbox, and the commands that a person types beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.specs.yaml_io import dump_yaml
from scaler_wizard.store.flightlog import read_entries
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

SOURCE = Path(__file__).resolve().parents[2] / "src"
SENTENCE = "I accept responsibility for this run"
PATIENCE_SEC = 180.0
STEPS = 400
CONFIG: dict[str, Any] = {
    "model": {"base_model": "seedling", "runtime": "cpu"},
    "lineage": {"lora": {"rank": 4, "alpha": 8}},
    "training": {"max_steps": STEPS, "epochs": None, "batch_tokens": 256, "micro_batch_tokens": 256},
    "validation": {"rows": 8, "tasks": ["copy"]},
    "queue": {"settle_seconds": 0.3, "poll_interval": 1.0},
    "disk": {"refuse_below_gb": 0.0, "warn_below_gb": 0.0, "ballast_mb": 0.0},
}


class Place:
    """A workspace and the command line."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inbox = root / "inbox"

    def scaler(self, *arguments: str, code: int = 0) -> str:
        """What a command prints (of a refusal: what it says); it must end with `code`."""
        environment = {
            **os.environ, "PYTHONPATH": str(SOURCE), "SCALER_WORKSPACE": str(self.root), "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "scaler_wizard.cli.main", *arguments], capture_output=True, text=True,
            env=environment, check=False, timeout=PATIENCE_SEC,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    def status(self) -> dict[str, Any]:
        """`scaler status --json`."""
        found: dict[str, Any] = json.loads(self.scaler("status", "--json").splitlines()[-1])
        return found

    def start(self) -> int:
        """A daemon in the background; its process id."""
        return int(json.loads(self.scaler("daemon", "start", "--detach", "--json").splitlines()[-1])["pid"])

    def run(self, name: str) -> dict[str, Any]:
        """`scaler runs show`."""
        shown: dict[str, Any] = json.loads(self.scaler("runs", "show", name, "--json").splitlines()[-1])
        return shown

    def wait(self, ready: Callable[[], Any], what: str) -> Any:
        """Poll until `ready()` is true; its value."""
        until = time.monotonic() + PATIENCE_SEC
        while time.monotonic() < until:
            if found := ready():
                return found
            time.sleep(0.1)
        log = (self.root / "logs" / "daemon.log").read_text()
        alerts = self.status()["alerts"]
        raise AssertionError(f"waited for {what}; {alerts}; the daemon said:\n{log[-4000:]}")

    def seen(self) -> dict[str, str]:
        """Name in the inbox -> what became of it, from the view in the workspace."""
        try:
            view = json.loads((self.root / "queue.json").read_text())
        except FileNotFoundError:
            return {}
        return {one["name"]: one["outcome"] for one in view["inbox"]}


@pytest.fixture
def place() -> Iterator[Place]:
    # Not tmp_path: a Unix socket's address has 107 bytes, and this one is to be in the workspace.
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        found = Place(Path(folder) / "w")
        Workspace.create(found.root)
        (found.root / "config.yaml").write_text(dump_yaml(CONFIG))
        found.scaler("daemon", "sign", "--by", "A Person", "--accept", SENTENCE)
        try:
            yield found
        finally:
            end_processes(found.root)


def end_processes(root: Path) -> None:
    """No daemon and no worker of the workspace may outlive its test."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        if os.fsencode(root) in words and b"scaler_wizard" in words:
            os.kill(int(entry.parent.name), signal.SIGKILL)


def rows(start: int, count: int = 60) -> str:
    turns = [
        [{"role": "user", "content": f"{n} + 1 ="}, {"role": "assistant", "content": str(n + 1)}]
        for n in range(start, start + count)
    ]
    return "".join(json.dumps({"messages": turn}) + "\n" for turn in turns)


def state(path: Path) -> tuple[bytes, int]:
    return path.read_bytes(), path.stat().st_mtime_ns


def test_the_inbox_of_a_paused_daemon(place: Place) -> None:
    """Everything about files but learning them: no torch is loaded."""
    pid = place.start()
    refused = place.scaler("daemon", "start", "--detach", code=7)
    assert f"in use by process {pid}" in refused
    assert "the queue is paused" in place.scaler("pause", "--reason", "lunch")

    first, second = place.inbox / "rows.jsonl", place.inbox / "more" / "rows.jsonl"
    second.parent.mkdir()
    first.write_text(rows(0))
    os.utime(first, (1.0, 1.0))
    second.write_text(rows(1000))
    (place.inbox / "rows.json").write_text('{"priority": "high", "description": "sums"}')
    (place.inbox / "copy of rows.jsonl").write_text(rows(0))
    (place.inbox / "broken.jsonl").write_text("{\nnothing\n")
    (place.inbox / "link.jsonl").symlink_to("/etc/hostname")
    (place.inbox / "half.jsonl.part").write_text(rows(5))
    before = {path: state(path) for path in (first, second)}
    place.wait(lambda: len(place.seen()) == 5, "five files to be seen")

    seen = place.seen()
    assert seen.pop("broken.jsonl") == "failed"
    assert seen.pop("link.jsonl") == "refused"
    assert sorted(seen.values()) == ["duplicate", "queued", "queued"]
    assert seen["more/rows.jsonl"] == "queued"
    status = place.status()
    assert status["daemon"]["paused"]
    assert "lunch" in status["daemon"]["paused_reason"]
    assert status["queue"]["counts"]["queued"] == 2
    assert status["current"] is None
    assert any("broken.jsonl) failed" in alert["text"] for alert in status["alerts"])
    assert {path: state(path) for path in before} == before, "a person's file is only read"
    assert {entry["name"] for entry in status["inbox"]} == set(place.seen())

    queued = json.loads(place.scaler("queue", "list", "--json").splitlines()[-1])["queued"]
    assert len({row["run"] for row in queued}) == 2, "two files of one name are two jobs"
    later = queued[-1]["run"]
    place.scaler("queue", "set-priority", later, "high")
    place.scaler("queue", "set-priority", queued[0]["run"], "low")
    again = json.loads(place.scaler("queue", "list", "--json").splitlines()[-1])["queued"]
    assert [row["run"] for row in again] == [later, queued[0]["run"]]
    assert "is skipped" in place.scaler("skip", later, "--reason", "not today")
    assert "not today" in json.dumps(place.run(later)["history"])
    assert "1 jobs taken out" in place.scaler("clear", "--yes", "--reason", "all of it")

    assert f"(process {pid}) has ended" in place.scaler("daemon", "stop", "--reason", "update")
    assert place.status()["daemon"] is None
    place.scaler("daemon", "stop", code=7)
    fresh = place.start()
    time.sleep(2.0)  # longer than settling and polling: what it would do, it has done
    status = place.status()
    assert status["daemon"]["pid"] == fresh != pid
    assert not status["daemon"]["paused"], "a pause left from before does not act"
    assert status["queue"]["counts"]["queued"] == 0, "what lies in the inbox unchanged is not taken again"
    assert status["queue"]["counts"]["skipped"] == 2
    place.scaler("daemon", "stop")


def test_a_changed_config_starts_nothing_until_it_is_signed(place: Place) -> None:
    changed = {**CONFIG, "replay": {"fraction": 0.5}}
    (place.root / "config.yaml").write_text(dump_yaml(changed))
    place.start()
    (place.inbox / "rows.jsonl").write_text(rows(0))
    waiting = place.wait(lambda: place.status()["daemon"]["waiting_files"], "a waiting file")
    assert "scaler daemon sign" in waiting["rows.jsonl"]
    assert any("scaler daemon sign" in alert["text"] for alert in place.status()["alerts"])
    place.scaler("pause")
    place.scaler("daemon", "sign", "--by", "A Person", "--accept", SENTENCE)
    place.wait(lambda: place.seen().get("rows.jsonl") == "queued", "the file to be queued")
    assert not any("scaler daemon sign" in alert["text"] for alert in place.status()["alerts"])
    place.scaler("daemon", "stop")


def test_a_killed_daemon_is_followed_by_another(place: Place) -> None:
    pid = place.start()
    os.kill(pid, signal.SIGKILL)
    place.wait(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid), "its end")
    assert place.start() != pid
    place.scaler("daemon", "stop")


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
def test_a_file_is_learned_through_a_pause_a_stop_and_a_kill(place: Place) -> None:
    """Real training: paused by its file's name, resumed at the next step; adopted after kill -9."""
    place.start()
    (place.inbox / "rows.jsonl").write_text(rows(0))
    run = RunDir(place.root / "runs" / "rows-0001")

    def steps() -> list[int]:
        return [event.step for event in run.read_events() if event.type == "step"]

    place.wait(steps, "the first step")
    assert "sent to rows-0001" in place.scaler("pause", "rows.jsonl", "--reason", "lunch")
    place.wait(lambda: place.run("rows-0001")["status"] == "paused", "the pause")
    done = len(steps())
    assert 0 < done < STEPS, "half a file is never completed"
    shown = place.status()
    assert shown["versions"] == []
    assert shown["queue"]["paused_runs"] == ["rows-0001 (rows.jsonl)"]

    pid = json.loads((place.root / "status.json").read_text())["daemon"]["pid"]
    resumed = place.scaler("resume", "rows.jsonl", "--reason", "back")
    assert "completed" in resumed
    assert steps() == list(range(1, STEPS + 1)), "no step twice, none left out"
    (version,) = place.status()["versions"]
    assert (version["version"], version["run"]) == ("v001", "rows-0001")

    (place.inbox / "other.jsonl").write_text(rows(500))
    place.wait(lambda: (place.status()["current"] or {}).get("run") == "other-0001", "the second file")
    os.kill(pid, signal.SIGKILL)
    place.wait(lambda: is_zombie(pid) if Path(f"/proc/{pid}").exists() else True, "the daemon's end")
    place.start()
    place.wait(lambda: place.run("other-0001")["status"] == "completed", "the adopted worker")
    assert len(place.run("other-0001")["attempts"]) == 1, "the same worker, not another one"
    assert [one["version"] for one in place.status()["versions"]] == ["v002", "v001"]
    kinds = [entry["kind"] for entry in read_entries(place.root / "logs" / "flight_log.jsonl")]
    assert kinds.count("signature") == 2
    place.scaler("daemon", "stop")
