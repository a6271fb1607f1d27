"""Memory does not grow with the file: peak resident memory, measured in a process of its own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MEASURE = """
import json, sys
from pathlib import Path
from scaler_wizard.data.convert import convert_file
from scaler_wizard.data.validate import validate_file
def peak():
    # Not ru_maxrss, which begins with what the parent held when it forked.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
command, path, out = sys.argv[1:]
base = peak()
if command == "convert":
    done = convert_file(Path(path), Path(out), force=True)
    found = {"rows": done.rows, "kinds": []}
else:
    report = validate_file(Path(path), command, validation=None, quarantine=Path(out))
    found = {"rows": report.accepted, "kinds": [problem.kind for problem in report.problems]}
print(json.dumps({**found, "megabytes": peak() - base, "torch": "torch" in sys.modules}))
"""
MOST_MEGABYTES = 200
WORDS = [f"word{n}" for n in range(4000)]


def measure(command: str, path: Path) -> dict[str, Any]:
    arguments = [sys.executable, "-c", MEASURE, command, str(path), str(path) + ".out"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert not found["torch"]
    return found


def write_rows(path: Path, megabytes: int) -> int:
    """About so many megabytes of different rows of about 1 KB; returns how many."""
    rng = random.Random(0)
    n_rows = 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes << 20:
            block = []
            for _ in range(500):
                n_rows += 1
                question, answer = (" ".join(rng.choices(WORDS, k=64)) for _ in range(2))
                block.append(json.dumps({"prompt": f"{n_rows} {question}", "completion": answer}) + "\n")
            file.write("".join(block))
    return n_rows


def test_thirty_megabytes_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    n_rows = write_rows(path, 30)
    found = measure("standard", path)
    assert (found["rows"], found["kinds"]) == (n_rows, [])
    assert found["megabytes"] < 30


def test_one_endless_line_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(256 << 20)
        file.seek(0, 2)
        file.write(b'\n{"text": "after"}\n')
    found = measure("quick", path)
    assert (found["rows"], found["kinds"]) == (1, ["too_long"])
    assert found["megabytes"] < MOST_MEGABYTES


@pytest.mark.parametrize(
    ("name", "head", "piece", "megabytes", "kind"),
    [
        ("a.jsonl", b'{"text": "\xf0\x9f\x98\x80', b"x y\\n ", 20, "too_long"),
        ("a.jsonl", b'{"text": [', b"[],", 20, "too_long"),
        ("a.jsonl", b'{"text": [', b"[],", 7, "json"),
        ("a.json", b'[{"text": [', b"[],", 20, "damage"),
        ("a.json", b'[{"text": "\xf0\x9f\x98\x80', b"x", 20, "damage"),
        ("a.csv", b"text\n", b'"a\n",', 20, "damage"),
        ("a.csv", b"text\n", b",", 20, "too_long"),
        ("a.csv", b"text\n", b"x,", 7, "cells"),
    ],
)
def test_hostile_shapes_stay_within_bounds(
    tmp_path: Path, name: str, head: bytes, piece: bytes, megabytes: int, kind: str
) -> None:
    """What costs most memory a byte: one wide string, empty lists, quotes that never close."""
    path = tmp_path / name
    path.write_bytes(head + piece * ((megabytes << 20) // len(piece)))
    found = measure("standard", path)
    assert found["megabytes"] < MOST_MEGABYTES
    assert kind in found["kinds"]


def test_row_just_below_the_limit_stays_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = "\U0001f600" + "a b\n" * 1_600_000
    path.write_text(json.dumps({"prompt": "q", "completion": text}, ensure_ascii=False) + "\n")
    assert 7 << 20 < path.stat().st_size < 8 << 20
    found = measure("deep", path)
    assert found["rows"] == 1
    assert found["megabytes"] < MOST_MEGABYTES


@pytest.mark.slow
@pytest.mark.parametrize("command", ["standard", "convert"])
def test_three_hundred_megabytes_of_rows(tmp_path: Path, command: str) -> None:
    path = tmp_path / "a.jsonl"
    n_rows = write_rows(path, 300)
    found = measure(command, path)
    assert found["rows"] == n_rows
    assert found["megabytes"] < MOST_MEGABYTES


@pytest.mark.slow
def test_ten_gigabytes_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n')
        file.truncate(10 << 30)
    found = measure("standard", path)
    assert (found["rows"], found["kinds"]) == (1, ["too_long"])
    assert found["megabytes"] < MOST_MEGABYTES
