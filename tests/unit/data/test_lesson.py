"""A file to learn from and earlier files to replay: which row lands where."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.data.lesson import Lesson, Replay, read_lesson, read_replay
from scaler_wizard.data.sample import load_tokenizer
from scaler_wizard.errors import EmptyDataError
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.specs.sections import DatasetSection


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve_model("seedling"))


def write(path: Path, texts: Iterable[str], *, extra: str = "") -> Path:
    rows = (
        {"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t}]} for t in texts
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + extra)
    return path


def section(path: Path | str, **changes: Any) -> DatasetSection:
    return DatasetSection(
        identifier=str(path), **{"holdout_fraction": 0.2, "bad_rows": "quarantine", **changes}
    )


def lesson(path: Path, tokenizer: Any, *, seed: int = 0, questions: int = 8, **changes: Any) -> Lesson:
    return read_lesson(section(path, **changes), tokenizer, context=128, seed=seed, questions=questions)


def replay(files: list[str], tokenizer: Any, *, draw: str = "a", max_rows: int = 30) -> Replay:
    return read_replay(
        files, section("unused"), tokenizer, context=128, seed=0, draw=draw, max_rows=max_rows, questions=6
    )


def texts_of(rows: Any, tokenizer: Any) -> set[str]:
    return {tokenizer.decode(row.ids.tolist()) for row in rows}


def test_every_row_is_on_one_side(tmp_path: Path, tokenizer: Any) -> None:
    found = lesson(write(tmp_path / "a.jsonl", map(str, range(200))), tokenizer)
    assert found.n_train + found.n_held_out == 200
    assert 20 <= found.n_held_out <= 60
    assert not texts_of(found.train, tokenizer) & texts_of(found.held_out, tokenizer)
    held_out = texts_of(found.held_out, tokenizer)
    assert len(found.questions) == 8
    for question in found.questions:
        assert any(question.messages[0].content in text for text in held_out)


def test_what_one_file_holds_out_no_other_trains_on(tmp_path: Path, tokenizer: Any) -> None:
    first = lesson(write(tmp_path / "a.jsonl", map(str, range(100))), tokenizer)
    second = lesson(write(tmp_path / "b.jsonl", map(str, range(50, 300))), tokenizer)
    assert not texts_of(first.held_out, tokenizer) & texts_of(second.train, tokenizer)


def test_bad_lines_are_set_aside_and_named(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", map(str, range(20)), extra='{"broken\n{"messages": []}\n')
    found = lesson(path, tokenizer)
    assert found.bad.count == 2
    assert [number for number, _ in found.bad.reasons] == [21, 22]
    assert found.n_train + found.n_held_out == 20


def test_one_row_is_trained_and_nothing_is_held_out(tmp_path: Path, tokenizer: Any) -> None:
    found = lesson(write(tmp_path / "a.jsonl", ["same"] * 3), tokenizer)
    assert (found.n_train, found.n_held_out) == (3, 0)
    assert found.questions == ()


def test_nothing_usable_is_said(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{broken\n")
    with pytest.raises(EmptyDataError):
        lesson(path, tokenizer)


def test_replay_is_drawn_evenly_and_never_from_held_out_rows(tmp_path: Path, tokenizer: Any) -> None:
    files = [
        write(tmp_path / f"{name}.jsonl", (f"{name} {number}" for number in range(size)))
        for name, size in (("a", 400), ("b", 60), ("c", 60))
    ]
    found = replay([str(path) for path in files], tokenizer)
    drawn = texts_of(found.rows, tokenizer)
    assert found.files == 3
    assert [sum(f"> {name} " in text for text in drawn) for name in "abc"] == [10, 10, 10]
    held_out = set[str]()
    for path in files:
        held_out |= texts_of(lesson(path, tokenizer).held_out, tokenizer)
    assert not drawn & held_out
    assert texts_of(found.held_out, tokenizer) <= held_out
    assert len(found.questions) == 6


def test_the_draw_is_repeatable_and_differs_between_files(tmp_path: Path, tokenizer: Any) -> None:
    files = [str(write(tmp_path / "a.jsonl", map(str, range(300))))]
    once, again, other = (
        texts_of(replay(files, tokenizer, draw=draw).rows, tokenizer) for draw in ("x", "x", "y")
    )
    assert once == again
    assert once != other


def test_an_earlier_file_that_is_gone_is_named(tmp_path: Path, tokenizer: Any) -> None:
    here = write(tmp_path / "a.jsonl", map(str, range(30)))
    found = replay([str(tmp_path / "gone.jsonl"), str(here)], tokenizer)
    assert found.files == 1
    assert len(found.missing) == 1
    assert "gone.jsonl" in found.missing[0]


def test_no_replay_without_earlier_files(tokenizer: Any) -> None:
    found = replay([], tokenizer)
    assert (len(found.rows), found.questions, found.files) == (0, (), 0)
