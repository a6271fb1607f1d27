"""Everything generated is written down, and nothing but what was written is read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler_wizard.data.records import (
    manifest_path,
    read_manifest,
    read_records,
    records_digest,
    write_records,
)
from scaler_wizard.errors import DataError, RunError

ROWS: list[dict[str, Any]] = [
    {"id": "a", "instruction": "Reverse: a b", "initial_answer": "b a", "kept": True, "reason": ""},
    {"id": "b", "instruction": "Reverse: c d", "initial_answer": "c d", "kept": False, "reason": "critic"},
    {"id": "c", "instruction": "\u2028 \x1b[2J", "initial_answer": "", "kept": False, "reason": "empty"},
    {"id": "d", "instruction": "x", "initial_answer": "y", "kept": False},
]  # fmt: skip
ABOUT = {"stage": 1, "seed": 7, "weights": "P1-0001", "prompts": ["{}"]}


def test_rejected_rows_keep_their_reason(tmp_path: Path) -> None:
    path = tmp_path / "stage1" / "rows.jsonl"
    manifest = write_records(path, ROWS, ABOUT)
    assert (manifest.rows, manifest.kept) == (4, 1)
    assert dict(manifest.rejected) == {"critic": 1, "empty": 1, "no reason given": 1}
    assert read_manifest(path) == manifest
    assert list(read_records(path)) == ROWS
    assert list(read_records(path, manifest.sha256)) == ROWS


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    first = write_records(tmp_path / "a" / "rows.jsonl", ROWS, ABOUT)
    second = write_records(tmp_path / "b" / "rows.jsonl", iter(ROWS), ABOUT)
    assert first == second
    assert records_digest(tmp_path / "a") == records_digest(tmp_path / "b")
    write_records(tmp_path / "b" / "rows.jsonl", ROWS[:3], ABOUT)
    assert records_digest(tmp_path / "a") != records_digest(tmp_path / "b")


def test_an_interrupted_writer_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    before = write_records(path, ROWS, ABOUT)

    def broken() -> Any:
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, broken(), ABOUT)
    assert read_manifest(path) == before
    assert list(read_records(path)) == ROWS


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(path.read_bytes() + b'{"kept": true}\n'),
        lambda path: path.write_bytes(path.read_bytes().replace(b"critic", b"honest")),
        lambda path: path.unlink(),
        lambda path: manifest_path(path).unlink(),
        lambda path: manifest_path(path).write_text("[]"),
        lambda path: manifest_path(path).write_text("[" * 100_000),
        lambda path: manifest_path(path).write_bytes(b"\xff\xfe"),
        lambda path: _edit(path, "rows", -1),
        lambda path: _edit(path, "rejected", {"x": "many"}),
        lambda path: _edit(path, "file", "other.jsonl"),
        lambda path: _edit(path, "format", 2),
        lambda path: _edit(path, "about", None),
    ],
)
def test_what_was_changed_is_refused(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_records(path, ROWS, ABOUT)
    damage(path)
    with pytest.raises(RunError) as refused:
        list(read_records(path))
    assert "roll back" in refused.value.todo


def _edit(path: Path, key: str, value: object) -> None:
    place = manifest_path(path)
    place.write_text(json.dumps(json.loads(place.read_text()) | {key: value}))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_records(path, ROWS, ABOUT)
    path.rename(tmp_path / "elsewhere.jsonl")
    path.symlink_to(tmp_path / "elsewhere.jsonl")
    with pytest.raises(RunError):
        list(read_records(path))


@pytest.mark.parametrize("line", ["[1]", '{"kept": 1}', "{}", '{"kept": true, "x": NaN}', '{"kept": true'])
def test_a_row_that_is_none_is_refused_even_with_the_right_hash(line: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(RunError):
        list(read_records(path, hashlib.sha256(path.read_bytes()).hexdigest()))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "stage1").write_text("a file", encoding="utf-8")
    with pytest.raises(DataError):
        write_records(tmp_path / "stage1" / "rows.jsonl", ROWS, ABOUT)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(junk=st.binary(max_size=300))
def test_no_bytes_break_the_reader(junk: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(junk)
    manifest_path(path).write_bytes(junk)
    with pytest.raises(RunError):
        list(read_records(path))
