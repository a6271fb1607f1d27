"""A bundle on the command line: asked, copied elsewhere and asked again, its files of questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scaler_wizard.cli.experts import app
from scaler_wizard.errors import EmptyDataError, ModelError, UsageError


def scaler(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output.splitlines()


def last(lines: list[str]) -> dict[str, Any]:
    value = json.loads(lines[-1])
    assert isinstance(value, dict)
    return value


def test_an_imported_bundle_answers_as_the_one_it_was_copied_from(
    bundle_folder: Path, tmp_path: Path
) -> None:
    question = ("ask", "Sort: d b a c", "--json")
    before = last(scaler(*question, "--folder", str(bundle_folder)))
    brought = ("import", str(bundle_folder / "loras.json"), "-w", str(tmp_path / "w"), "--json")
    copied = last(scaler(*brought))
    assert Path(copied["folder"]).is_relative_to(tmp_path / "w")
    assert set(copied["adapters"]) == {"north", "south", "plain"}
    assert last(scaler(*brought)) == copied
    assert last(scaler(*question, "--folder", copied["folder"])) == before

    weights = Path(copied["adapters"]["north"]) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="north are not those that were saved"):
        scaler(*brought)


def test_a_file_of_questions_is_answered_line_by_line(bundle_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    rows = [{"prompt": "Sort: b a"}, {"prompt": " "}, {"prompt": "a", "expert": "nobody"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = scaler("serve-once", str(file), "--folder", str(bundle_folder), "--json")
    found = [json.loads(line) for line in lines]
    assert found[0].keys() == {"answer", "expert", "confidence", "abstained"}
    assert [line["error"] for line in found[1:3]] == ["RowError", "UnknownExpertError"]
    assert found[3] == {"questions": 3, "answered": 1, "refused": 2}


@pytest.mark.parametrize("command", ["serve-once", "bench"])
def test_a_file_without_questions_is_refused_before_anything_is_loaded(command: str, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(EmptyDataError):
        scaler(command, str(file), "--folder", str(tmp_path))


def test_a_device_that_is_none_is_refused_in_the_words_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--device cudaa"):
        scaler("ask", "hello", "--folder", str(tmp_path), "--device", "cudaa")
