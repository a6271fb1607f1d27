"""The place of a soak test: a workspace, a daemon in a process of its own, files for its inbox, and SIGKILL.

Processes are found by what they inherited (the workspace in their environment) and killed as the kernel's
memory killer would. Knows nothing of what must hold afterwards: that is `soak_audit`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from scaler_wizard.errors import ScalerError
from scaler_wizard.jobs.client import Client
from scaler_wizard.safety.contract import sign
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.specs.yaml_io import dump_yaml
from scaler_wizard.store.config import config_path
from scaler_wizard.store.durable import write_atomic
from scaler_wizard.store.workspace import ENVIRONMENT_VARIABLE, Workspace

WORKER, WRITER = "scaler_wizard.recipes.worker", "scaler_wizard.store.checkpoint_writer"
CONFIG: dict[str, Any] = {
    "model": {"base_model": "seedling", "runtime": "cpu"},
    "lineage": {"lora": {"rank": 4, "alpha": 8}},
    "training": {"batch_tokens": 256, "micro_batch_tokens": 256},
    "validation": {"rows": 8, "tasks": ["copy"], "check_every": 0},
    "replay": {"max_rows": 40},
    # A checkpoint every few steps, so that its writer is at work when the signal comes.
    "safety": {"gates": {"ask": "auto_approve"}, "checkpoint_every_sec": 0.2},
    # Deaths are what is tested here: a run gives up only where it gets no further at all.
    "queue": {"settle_seconds": 0.2, "poll_interval": 0.5, "restarts": 100, "restart_window_sec": 1.0},
    "disk": {"refuse_below_gb": 0.0, "warn_below_gb": 0.0, "ballast_mb": 1.0},
}


@dataclass
class Field:
    """One workspace under fire."""

    root: Path
    rng: random.Random
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """SHA-256 of each content -> the names under which it was dropped."""
    own_ends: list[str] = field(default_factory=list)
    """How daemons ended that nobody had killed: there must be none."""
    daemon: subprocess.Popen[bytes] | None = None
    rows: int = 0

    def __post_init__(self) -> None:
        self.space = Workspace.create(self.root)
        config = ContinualConfig.parse(CONFIG, "the soak's config")
        signed = sign(config, "the soak", None, None, datetime.now(UTC), "a soak")
        assert signed.contract is not None
        contract = {"contract": signed.contract.model_dump(mode="json", by_alias=True)}
        write_atomic(config_path(self.space), dump_yaml(CONFIG | contract))

    def start_daemon(self) -> None:
        """Start one where none lives; does not wait until it answers."""
        if self.daemon is not None:
            if self.daemon.poll() is None:
                return
            self.own_ends.append(f"exit code {self.daemon.returncode}")
        with (self.space.logs / "daemon.out").open("ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "scaler_wizard.cli.main", "daemon", "start", "-w", str(self.root)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )  # fmt: skip

    def stop_daemon(self, seconds: float) -> bool:
        """End it as a person would; whether it ended in time."""
        if self.daemon is None:
            return True
        self.daemon.send_signal(signal.SIGTERM)
        try:
            self.daemon.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self.daemon = None
        return True

    def drop(self, n_rows: int, name: str = "") -> None:
        """Put a file of new content into the inbox."""
        name = name or f"{self.rng.choice(('letters', 'sums', 'notes'))}-{len(self.dropped)}.jsonl"
        lines = []
        for _ in range(n_rows):
            asked, said = f"{self.rows} + 1 =", str(self.rows + 1)
            turn = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            lines.append(json.dumps({"messages": turn}) + "\n")
            self.rows += 1
        self._put(name, "".join(lines))

    def drop_again(self) -> None:
        """The bytes of an earlier file under another name."""
        names = self.rng.choice(list(self.dropped.values()))
        again = f"again-{len(names)}-{names[0]}"
        self._put(again, (self.space.inbox / names[0]).read_text(encoding="utf-8"))

    def _put(self, name: str, text: str) -> None:
        with (self.space.inbox / name).open("x", encoding="utf-8") as file:
            file.write(text)
        self.dropped.setdefault(sha256(text.encode()).hexdigest(), []).append(name)

    def processes(self, word: str = "") -> list[int]:
        """Processes of this workspace, but for its daemon; those with a word in their command line."""
        mark = f"{ENVIRONMENT_VARIABLE}={self.root}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0") and (
                    not word or word.encode() in (folder / "cmdline").read_bytes().split(b"\0")
                ):
                    found.append(int(folder.name))
        return found

    def kill(self, words: tuple[str, ...] = (), *, daemon: bool = False) -> int:
        """SIGKILL the daemon, the processes with these words, or all of them; how many were hit."""
        pids = [pid for word in words for pid in self.processes(word)]
        if daemon and self.daemon is not None:
            if self.daemon.poll() is None:
                pids.insert(self.rng.randrange(len(pids) + 1), self.daemon.pid)
            else:
                self.own_ends.append(f"exit code {self.daemon.returncode}")
        hit = 0
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                hit += 1
        if daemon and self.daemon is not None:
            self.daemon.wait()
            self.daemon = None
        return hit

    def runs(self) -> list[dict[str, Any]] | None:
        """Every run as the daemon lists it; None while it does not answer."""
        try:
            with Client(self.space) as client:
                return list(client.call("runs")["runs"]) if client.hosted else None
        except (ScalerError, OSError):
            return None

    def skip(self, name: str) -> None:
        """Take a file out, as a person would: it is not to be learned, and not counted."""
        with Client(self.space) as client:
            run = client.call("find_run", name=name)["run"]
            client.call("command", run=run, action="skip", by="the soak", reason="it has served its purpose")
        self.dropped = {digest: names for digest, names in self.dropped.items() if name not in names}

    def reported(self) -> int:
        """Bytes of events that all workers have written."""
        files = (run_dir.path / "events.jsonl" for run_dir in self.space.run_dirs())
        return sum(path.stat().st_size for path in files if path.exists())

    def first_step(self, after: float, seconds: float) -> float | None:
        """Unix time of the first training step reported after a time; None where none came."""
        until = time.monotonic() + seconds
        newest = max(self.space.run_dirs(), key=lambda run_dir: run_dir.created())
        while time.monotonic() < until:
            for event in newest.read_events():
                if event.type == "step" and event.time > after:
                    return float(event.time)
            time.sleep(0.02)
        return None
