"""`scaler data` as a person calls it: texts, exit codes, files, JSON on the last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_validate_sets_bad_lines_aside_beside_the_file(scaler: Any, data: Path) -> None:
    data.write_bytes(data.read_bytes() + b"{oops\n")
    called = scaler("data", "validate", "data.jsonl", "--json")
    assert called.code == 0, called.err
    assert (called.last["accepted"], called.last["quarantined"]) == (700, 1)
    assert "line 701" in called.out
    aside = data.with_name("data.jsonl.quarantine.jsonl")
    assert json.loads(aside.read_text())["raw"] == "{oops"
    aside.unlink()
    assert scaler("data", "validate", "data.jsonl", "--dry-run").code == 0
    assert not aside.exists()


def test_validate_leaves_with_an_error_when_fatal_or_strict(scaler: Any, data: Path) -> None:
    assert scaler("data", "validate", "data.jsonl", "--strict").code == 0
    data.write_bytes(data.read_bytes() + b"{oops\n")
    assert scaler("data", "validate", "data.jsonl", "--strict").code == 5
    failed = scaler("data", "validate", "data.jsonl", "--on-bad-line", "fail")
    assert failed.code == 5
    assert "row 701" in failed.err
    data.write_text('{"x": 1}\n')
    called = scaler("data", "validate", "data.jsonl", "--json")
    assert called.code == 5
    assert called.last["fatal"] is True
    missing = scaler("data", "validate", "none.jsonl")
    assert missing.code == 5
    assert "no data file" in missing.err


def test_analyze_draws_lengths_in_tokens(scaler: Any, data: Path) -> None:
    called = scaler("data", "analyze", "data.jsonl", "--model", "seedling", "--max-length", "20", "--json")
    assert called.code == 0, called.err
    assert called.last["lengths"]["unit"] == "tokens"
    assert sum(entry["rows"] for entry in called.last["lengths"]["histogram"]) == 700
    assert "rows by length in tokens" in called.out
    assert "####" in called.out


def test_convert_refuses_to_replace_and_applies_a_profile(scaler: Any, data: Path) -> None:
    before = data.read_bytes()
    refused = scaler("data", "convert", "data.jsonl", "data.jsonl")
    assert refused.code == 5
    assert "exists already" in refused.err
    called = scaler("data", "convert", "data.jsonl", "out.jsonl", "--profile", "regime3", "--json")
    assert called.code == 0, called.err
    assert called.last["rows"] == 700
    first = json.loads(data.with_name("out.jsonl").read_text().splitlines()[0])
    assert first["messages"][1]["content"] == "<<ANS_START>>0<<ANS_END>>"
    assert data.read_bytes() == before
    assert scaler("data", "convert", "data.jsonl", "dry.jsonl", "--dry-run").code == 0
    assert not data.with_name("dry.jsonl").exists()


def test_generate_writes_the_same_rows_for_the_same_seed(scaler: Any, tmp_path: Path) -> None:
    arguments = ("--task", "syllo,binary_add", "--level", "easy", "--count", "20")
    called = scaler("data", "generate", "a.jsonl", *arguments, "--json")
    assert called.code == 0, called.err
    assert called.last["levels"] == [1, 2, 3]
    assert scaler("data", "generate", "b.jsonl", *arguments).code == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert {(row["task"], row["difficulty"]) for row in rows} == {("syllo", "easy"), ("binary_add", "easy")}
    assert scaler("data", "generate", "a.jsonl", *arguments).code == 5
    dry = scaler("data", "generate", "c.jsonl", *arguments, "--dry-run")
    assert "nothing written" in dry.out
    assert not (tmp_path / "c.jsonl").exists()
    assert scaler("data", "generate", "c.jsonl", "--task", "juggle").code == 2


def test_value_measures_in_a_process_of_its_own(scaler: Any, tmp_path: Path) -> None:
    made = scaler("data", "generate", "a.jsonl", "--task", "copy,reverse", "--level", "easy", "--count", "24")
    assert made.code == 0
    called = scaler("data", "value", "a.jsonl", "--sample", "16", "--steps", "4", "--json")
    assert called.code == 0, called.err
    assert called.last["rows"] == 8
    assert called.last["after"] < called.last["before"]
    (tmp_path / "few.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    refused = scaler("data", "value", "few.jsonl")
    assert refused.code == 5
    assert "at least 8" in refused.err
    assert scaler("data", "value", "a.jsonl", "--model", "./nowhere").code == 6


@pytest.mark.parametrize("name", ["validate", "analyze", "convert", "generate", "value"])
def test_every_subcommand_has_help(scaler: Any, name: str) -> None:
    called = scaler("data", name, "--help")
    assert called.code == 0
    assert "--json" in called.out
