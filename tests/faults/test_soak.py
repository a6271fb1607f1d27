"""The short version of `make soak`: a few random kills of a real daemon and real workers, then every hash.

`python scripts/soak.py --kills 1000` is the long one.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("SCALER_FAULT_SEED", random.SystemRandom().randrange(1 << 32)))
PATIENCE_SEC = 400.0


def soak(kills: int) -> dict[str, int]:
    """The last line of the soak, which must have ended well."""
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "scripts" / "soak.py"), "--json", "--seed", str(SEED),
            "--kills", str(kills), "--gap", "2", "--recoveries", "0",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=PATIENCE_SEC,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, f"{found}\n{done.stderr}"
    return found


def test_six_random_kills(capsys: pytest.CaptureFixture[str]) -> None:
    found = soak(6)
    with capsys.disabled():
        print(f"\n[faults] soak: {found}", end="")
    assert found["kills"] >= 6
    assert [found[name] for name in ("lost", "double", "corrupt", "stuck")] == [0, 0, 0, 0]
    assert found["files"] == found["completed"] + found["failed"]
