"""The fixed questions of a lineage, and the answers that lie beside a version's weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaler_wizard.data.generators import is_held_out_text
from scaler_wizard.errors import EmptyDataError, SpecError
from scaler_wizard.evals.validation import (
    ANSWERS_FILE,
    Answers,
    ValidationSet,
    read_answers,
    validation_set,
    write_answers,
)
from scaler_wizard.specs.continual import ValidationSection

SECTION = ValidationSection(rows=12, tasks=["copy", "sort"])


def answers(questions: ValidationSet) -> Answers:
    right = {name: tuple(at % 2 == 0 for at in range(len(rows))) for name, rows in questions.rows.items()}
    return Answers(right, ({"prompt": "p"},), 1.5)


def test_equal_seeds_ask_equal_questions() -> None:
    first, again = (validation_set(SECTION, 3, None) for _ in range(2))
    assert first.digest == again.digest
    assert [row.reference for row in first.rows["hard"]] == [row.reference for row in again.rows["hard"]]
    assert validation_set(SECTION, 4, None).digest != first.digest
    assert validation_set(SECTION, 3, "Be brief.").digest != first.digest


def test_difficulties_differ_and_no_training_file_may_hold_them() -> None:
    rows = validation_set(SECTION, 0, None).rows
    assert {name: len(found) for name, found in rows.items()} == {"easy": 12, "medium": 12, "hard": 12}
    lengths = [max(len(row.reference.split()) for row in rows[name]) for name in rows]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[2]
    for row in rows["easy"]:
        content = row.prompt[-1]
        assert isinstance(content, dict)
        assert is_held_out_text(content["content"].partition(": ")[2])


def test_an_unknown_generator_is_named() -> None:
    with pytest.raises(SpecError, match="nonsense"):
        validation_set(ValidationSection(tasks=["nonsense"]), 0, None)


def test_questions_from_files(tmp_path: Path) -> None:
    for name in ("easy", "medium", "hard"):
        rows = [{"prompt": f"{name} {n}?", "completion": str(n)} for n in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    section = ValidationSection(
        rows=8, **{name: str(tmp_path / f"{name}.jsonl") for name in ("easy", "medium", "hard")}
    )
    found = validation_set(section, 0, None)
    assert {len(rows) for rows in found.rows.values()} == {8}
    assert found.digest == validation_set(section, 0, None).digest
    (tmp_path / "hard.jsonl").write_text(json.dumps({"prompt": "why?", "completion": "long " * 40}))
    with pytest.raises(EmptyDataError, match="hard"):
        validation_set(section, 0, None)


def test_answers_are_read_back_for_the_same_questions_only(tmp_path: Path) -> None:
    questions = validation_set(SECTION, 0, None)
    write_answers(tmp_path, answers(questions), questions)
    assert read_answers(tmp_path, questions) == answers(questions)
    assert read_answers(tmp_path, validation_set(SECTION, 1, None)) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"questions": 1}', '{"right": {"easy": 3}}'])
def test_a_damaged_file_of_answers_is_no_answer(tmp_path: Path, text: str) -> None:
    (tmp_path / ANSWERS_FILE).write_text(text)
    assert read_answers(tmp_path, validation_set(SECTION, 0, None)) is None


def test_answers_of_another_number_of_questions_do_not_count(tmp_path: Path) -> None:
    questions = validation_set(SECTION, 0, None)
    write_answers(tmp_path, Answers({"easy": (True,)}, (), 0.0), questions)
    assert read_answers(tmp_path, questions) is None
