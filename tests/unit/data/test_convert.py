"""Conversion to messages JSON Lines: every format, whole files or none, never over the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.data.convert import convert_file
from scaler_wizard.data.jsonl_writer import JsonlWriter
from scaler_wizard.data.profiles import PROFILES
from scaler_wizard.errors import DataError, EmptyDataError, FormatError, RowError

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"question": "q", "answer": "a", "score": 3},
    ],
)
def test_formats_become_messages(tmp_path: Path, row: Any) -> None:
    out = tmp_path / "out.jsonl"
    done = convert_file(write(tmp_path / "a.jsonl", row, row), out)
    assert (done.rows, done.quarantined, done.target) == (2, 0, str(out))
    assert read(out) == [{"messages": TURNS}] * 2
    assert "2 rows" in done.words()


def test_text_stays_text_and_pairs_stay_pairs(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    convert_file(write(tmp_path / "a.jsonl", {"text": "x", "id": 1}), out)
    assert read(out) == [{"text": "x"}]
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    convert_file(write(tmp_path / "b.jsonl", pair), out, force=True)
    bad = [{"role": "assistant", "content": "b"}]
    assert read(out) == [{"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": bad}]
    # What was written is read again, and says the same.
    again = tmp_path / "again.jsonl"
    convert_file(out, again)
    assert read(again) == read(out)
    with pytest.raises(FormatError, match="plain text"):
        convert_file(tmp_path / "a.jsonl", tmp_path / "c.jsonl", profile=PROFILES["regime3"])


def test_profile_and_system_prompt_are_applied_by_content_not_by_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(20)]
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    emoji = PROFILES["emoji_think"]
    convert_file(write(tmp_path / "a.jsonl", *rows), first, profile=emoji, seed=3, system_prompt="be brief")
    convert_file(
        write(tmp_path / "b.jsonl", *rows[::-1]), second, profile=emoji, seed=3, system_prompt="be brief"
    )
    assert read(first) == read(second)[::-1]
    assert all(row["messages"][0] == {"role": "system", "content": "be brief"} for row in read(first))


def test_bad_rows_are_kept_aside_or_fatal_when_asked(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"messages": TURNS}, {"x": 1}, {"messages": []})
    source.write_bytes(source.read_bytes() + b"{\n")
    aside = tmp_path / "aside.jsonl"
    done = convert_file(source, tmp_path / "out.jsonl", quarantine=aside)
    assert (done.rows, done.quarantined, done.quarantine) == (1, 3, str(aside))
    assert [record["line"] for record in read(aside)] == [2, 3, 4]
    with pytest.raises(RowError):
        convert_file(source, tmp_path / "fail.jsonl", on_bad_line="fail")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "aside.jsonl", "out.jsonl"]


def test_no_file_is_replaced_unless_forced_and_none_is_left_half_written(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"prompt": "q", "completion": "a"})
    before = source.read_bytes()
    with pytest.raises(DataError, match="exists already"):
        convert_file(source, source)
    assert source.read_bytes() == before
    damaged = tmp_path / "b.json"
    damaged.write_text('[{"prompt": "q", "completion": "a"} oops')
    with pytest.raises(RowError, match="followed by"):
        convert_file(damaged, source, force=True)
    assert source.read_bytes() == before
    convert_file(source, source, force=True)
    assert read(source) == [{"messages": TURNS}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.json"]


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"messages": TURNS}, {"x": 1})
    done = convert_file(source, None, quarantine=tmp_path / "aside.jsonl")
    assert (done.rows, done.quarantined, done.target, done.quarantine) == (1, 1, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_nothing_to_convert(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError, match="no usable row"):
        convert_file(write(tmp_path / "a.jsonl", {"x": 1}), None)
    (tmp_path / "b.jsonl").write_text("x", encoding="utf-16")
    with pytest.raises(FormatError, match="UTF-16"):
        convert_file(tmp_path / "b.jsonl", None)
    with pytest.raises(DataError, match="is a folder"), JsonlWriter(tmp_path):
        pass
    with pytest.raises(DataError, match="cannot be written"), JsonlWriter(tmp_path / "none" / "a.jsonl"):
        pass
