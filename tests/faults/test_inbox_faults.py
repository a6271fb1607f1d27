"""Files that a person drops badly: half-copied, twice, as a link, far too large, binary, in another encoding.

The real intake of a daemon on a real inbox; only looking is done by the test. The person's files stay as they
are in every case.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from scaler_wizard.jobs.daemon_operations import DaemonOperations
from scaler_wizard.jobs.intake import Intake
from scaler_wizard.jobs.service import Service
from scaler_wizard.jobs.standing import Standing
from scaler_wizard.safety.contract import sign
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.specs.yaml_io import dump_yaml
from scaler_wizard.store.workspace import Workspace

SEED = int(os.environ.get("SCALER_FAULT_SEED", random.SystemRandom().randrange(1 << 32)))
SETTLE_SEC = 0.4
CONFIG: dict[str, Any] = {
    "model": {"base_model": "seedling", "runtime": "cpu"}, "lineage": {"lora": {"rank": 4, "alpha": 8}},
    "queue": {"settle_seconds": SETTLE_SEC},
    "disk": {"refuse_below_gb": 0.0, "warn_below_gb": 0.0, "ballast_mb": 0.0},
}  # fmt: skip
# Written in pieces, with pauses shorter than the settling time, as a slow copy over a network is.
SLOW_COPY = """
import random, sys, time
rng = random.Random(int(sys.argv[2]))
text = sys.stdin.buffer.read()
with open(sys.argv[1], "wb", buffering=0) as file:
    while text:
        size = rng.randrange(1, 400)
        file.write(text[:size])
        text = text[size:]
        time.sleep(rng.uniform(0, 0.1))
"""


class Ends:
    """A daemon that nothing is asked of."""

    def end(self, now: bool, why: str) -> float:
        raise AssertionError("nobody ends it here")


@dataclass
class Desk:
    """A daemon's intake, and what it knows."""

    space: Workspace
    service: Service
    intake: Intake

    def look(self, seconds: float = 2.5 * SETTLE_SEC) -> None:
        """Look again and again, as the daemon does."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.intake.look()
            time.sleep(0.05)

    def seen(self) -> dict[str, dict[str, Any]]:
        """Name in the inbox -> what became of it."""
        return {one["name"]: one for one in self.service.handle({"op": "status"})["inbox"]}

    def runs(self) -> list[dict[str, Any]]:
        return list(self.service.handle({"op": "runs"})["runs"])


@pytest.fixture
def desk(workspace: Workspace) -> Iterator[Desk]:
    config = ContinualConfig.parse(CONFIG, "config")
    signed = sign(config, "a test", None, None, datetime.now(UTC), "a sitting")
    assert signed.contract is not None
    contract = {"contract": signed.contract.model_dump(mode="json", by_alias=True)}
    (workspace.root / "config.yaml").write_text(dump_yaml(CONFIG | contract))
    standing = Standing.open(workspace)
    with Service(workspace, config) as service:
        service.add_operations(DaemonOperations(service, standing, Ends()).operations)

        def call(op: str, **fields: Any) -> dict[str, Any]:
            return service.handle({"op": op, **fields})

        yield Desk(workspace, service, Intake(workspace, call, lambda: standing.config))


def rows(count: int, start: int = 0) -> bytes:
    lines = (
        json.dumps({"prompt": f"{n} + 1 =", "completion": str(n + 1)}) for n in range(start, start + count)
    )
    return "".join(line + "\n" for line in lines).encode()


def test_a_file_is_not_taken_while_it_is_still_being_copied(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\n[faults] a slow copy (seed {SEED})", end="")
    path, text = desk.space.inbox / "rows.jsonl", rows(100)
    copying = subprocess.Popen([sys.executable, "-c", SLOW_COPY, str(path), str(SEED)], stdin=subprocess.PIPE)
    assert copying.stdin is not None
    with copying.stdin as pipe:
        pipe.write(text)
    while copying.poll() is None:
        desk.intake.look()
        if copying.poll() is None and path.exists() and path.stat().st_size < len(text):
            assert desk.runs() == [], "taken half-way"
        time.sleep(0.02)
    desk.look()
    (run,) = desk.runs()
    (copy,) = (desk.space.runs / run["run"] / "input").iterdir()
    assert copy.read_bytes() == text == path.read_bytes()


def test_what_cannot_be_learned_fails_with_its_reason_and_harms_nobody(desk: Desk) -> None:
    inbox = desk.space.inbox
    (inbox / "good.jsonl").write_bytes(rows(60))
    (inbox / "twin.jsonl").write_bytes(rows(60))
    (inbox / "binary.jsonl").write_bytes(random.Random(SEED).randbytes(100_000))
    (inbox / "utf16.jsonl").write_bytes(rows(60, 500).decode().encode("utf-16"))
    (inbox / "latin1.jsonl").write_bytes(rows(60, 1000) + '{"text": "caf\xe9 au lait"}\n'.encode("latin-1"))
    (inbox / "film.mp4").write_bytes(b"\0" * 1000)
    (inbox / "link.jsonl").symlink_to("/etc/passwd")
    os.mkfifo(inbox / "pipe.jsonl")
    # Ten terabytes on paper: no byte of it may be copied onto a disk that cannot hold it.
    (inbox / "huge.jsonl").touch()
    os.truncate(inbox / "huge.jsonl", 10 << 40)
    regular = [path for path in inbox.iterdir() if path.suffix == ".jsonl" and path.stat().st_size < 1 << 20]
    regular = [path for path in regular if path.is_file() and not path.is_symlink()]
    before = {path: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) for path in regular}
    desk.look()

    seen = desk.seen()
    assert {name: one["outcome"] for name, one in seen.items()} == {
        "good.jsonl": "queued", "twin.jsonl": "duplicate", "binary.jsonl": "failed", "utf16.jsonl": "failed",
        "latin1.jsonl": "queued", "film.mp4": "refused", "link.jsonl": "refused", "pipe.jsonl": "refused",
    }  # fmt: skip
    assert "it is taken when there is room" in desk.intake.waiting["huge.jsonl"]
    errors = {run["run"]: run["error"] for run in desk.runs() if run["status"] == "failed"}
    assert sorted(errors) == ["binary-0001", "utf16-0001"]
    assert all(errors.values()), "each says why"
    (aside,) = desk.space.runs.glob("latin1-*/quarantine.jsonl")
    (bad,) = map(json.loads, aside.read_text().splitlines())
    assert bad["line"] == 61, bad
    assert not list(desk.space.runs.glob("*/input/huge*"))
    assert before == {
        path: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) for path in before
    }
