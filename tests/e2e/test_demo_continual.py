"""`scaler demo continual`, from the outside: its last line says all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.slow
def test_the_whole_story(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scaler_wizard.cli.main", "demo", "continual", "--json"]
    done = subprocess.run(
        [*command, "--workspace", str(tmp_path / "w")], capture_output=True, text=True, env=environment,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["rose"]
    assert [lesson["promoted"] for lesson in report["files"]] == [True] * 3
    assert [version["version"] for version in report["versions"]] == ["v003", "v002", "v001"]
    assert report["duplicates"] == ["copy-of-1.jsonl"]
    assert [refused["file"] for refused in report["refused"]] == ["broken.jsonl"]
    assert [line["line"] for line in report["quarantined"]] == [2601, 2602]
    assert all(lesson["forgetting"]["p_value"] <= 1 for lesson in report["files"][1:])
    told = "\n".join(f"{event['subject']}: {event['words']}" for event in report["events"])
    for words in (
        "asked to pause",
        "the next batch was step",
        "killed with -9",
        "started again",
        "published",
    ):
        assert words in told
