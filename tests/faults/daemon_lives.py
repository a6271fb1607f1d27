"""Lives of a real daemon, forked from one process that has imported it: half a second each instead of three.

    python daemon_lives.py FOLDER PLAN      PLAN: JSON list of [commit, "before" | "after", kill worker too]

For each item: a fresh workspace with one file in its inbox, a daemon that is killed at that commit (with its
worker, if asked), then a daemon that is left alone until the file has its end. An item [null, ...] kills
nothing. Prints one JSON line an item: what `soak_audit` found, and how many workers were started.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts")]

from scaler_wizard.errors import ScalerError  # noqa: E402
from scaler_wizard.jobs.client import Client  # noqa: E402
from scaler_wizard.jobs.daemon import run_daemon  # noqa: E402
from scaler_wizard.jobs.sweep import find_processes, kill_all  # noqa: E402
from scaler_wizard.safety.contract import sign  # noqa: E402
from scaler_wizard.specs.continual import ContinualConfig  # noqa: E402
from scaler_wizard.specs.yaml_io import dump_yaml  # noqa: E402
from scaler_wizard.store.faulty_commits import CommitCounter, Instant  # noqa: E402
from scaler_wizard.store.states import FINISHED  # noqa: E402
from scaler_wizard.store.workspace import Workspace  # noqa: E402
from soak_audit import audit  # noqa: E402

PATIENCE_SEC = 60.0
CONFIG: dict[str, Any] = {
    "model": {"base_model": "seedling", "runtime": "cpu"},
    "lineage": {"lora": {"rank": 4, "alpha": 8}},
    "queue": {"settle_seconds": 0.0, "poll_interval": 0.2, "restarts": 5},
    "disk": {"refuse_below_gb": 0.0, "warn_below_gb": 0.0, "ballast_mb": 0.0},
}
TEXT = "".join(json.dumps({"prompt": f"{n} + 1 =", "completion": str(n + 1)}) + "\n" for n in range(20))


def prepare(root: Path) -> Workspace:
    """A workspace with a signed config and one dropped file."""
    space = Workspace.create(root)
    signed = sign(ContinualConfig.parse(CONFIG, "config"), "a test", None, None, datetime.now(UTC), "s")
    assert signed.contract is not None
    contract = {"contract": signed.contract.model_dump(mode="json", by_alias=True)}
    (root / "config.yaml").write_text(dump_yaml(CONFIG | contract))
    (space.inbox / "rows.jsonl").write_text(TEXT)
    return space


def fork_daemon(space: Workspace, interpreter: Path, die_at: int | None, instant: Instant) -> int:
    """A daemon in a child process, whose workers are started with `interpreter`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        sys.executable = str(interpreter)
        counter = CommitCounter(die_at, instant)
        counter.listen()
        run_daemon(space, lambda status: None, lambda text: None)
        (space.root / "commits.txt").write_text(str(counter.commits))
        os._exit(0)
    except BaseException:  # noqa: BLE001 (a forked child must never return into its parent's code)
        traceback.print_exc()
        os._exit(1)


def learned(space: Workspace) -> bool:
    """Whether the file has its end, as the daemon tells."""
    try:
        with Client(space) as client:
            runs = client.call("runs")["runs"] if client.hosted else []
    except (ScalerError, OSError, ValueError):  # the daemon is killed in the middle of its answer
        return False
    return bool(runs) and all(run["status"] in FINISHED for run in runs)


def wait(space: Workspace, pid: int) -> int | None:
    """Wait until the daemon is dead, or the file has its end and the daemon was asked to stop: its status."""
    until = time.monotonic() + PATIENCE_SEC
    asked = False
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if not asked and learned(space):
            os.kill(pid, signal.SIGTERM)
            asked = True
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def live(folder: Path, interpreter: Path, die_at: int | None, instant: Instant, both: bool) -> dict[str, Any]:
    """One item of the plan."""
    space = prepare(folder)
    endings = [wait(space, fork_daemon(space, interpreter, die_at, instant))]
    if die_at is not None and endings[0] == -signal.SIGKILL:
        if both:
            for run_dir in space.run_dirs():
                kill_all(run_dir.id, space.root)
        endings.append(wait(space, fork_daemon(space, interpreter, None, "before")))
    runs = space.run_dirs()
    left = [process.pid for run in runs for process in find_processes(run.id, space.root)]
    found = audit(space, {hashlib.sha256(TEXT.encode()).hexdigest(): ["rows.jsonl"]}, left)
    starts = [path.read_text().splitlines() for path in space.runs.glob("*/starts.txt")]
    return {
        "die_at": die_at, "instant": instant, "both": both, "endings": endings,
        "lost": found.lost, "double": found.double, "corrupt": found.corrupt, "stuck": found.stuck,
        "completed": found.completed, "starts": sum(map(len, starts)),
        "commits": int((space.root / "commits.txt").read_text()) if die_at is None else None,
    }  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    interpreter = folder / "python"
    worker = Path(__file__).with_name("quick_worker.py")
    # "-m scaler_wizard.recipes.worker RUN_DIR ...": the stand-in takes the rest.
    interpreter.write_text(
        f'#!/bin/sh\nif [ "$2" = scaler_wizard.recipes.worker ]; then shift 2; set -- "{worker}" "$@"; fi\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    interpreter.chmod(0o700)
    for number, (die_at, instant, both) in enumerate(json.loads(sys.argv[2])):
        print(json.dumps(live(folder / str(number), interpreter, die_at, instant, both)), flush=True)


main()
