"""A constitution is refused in plain words where it does not hold together; the shipped ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.errors import SpecError, UnknownKeyError
from scaler_wizard.specs.constitution import Constitution, Prompt, read_constitution
from scaler_wizard.specs.yaml_io import dump_yaml

PRINCIPLE = {"id": "kind", "text": "Be kind.", "revisions": [{"text": "Better than {answer}?"}]}


def constitution(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "name": "test", "judge": "redo", "principles": [PRINCIPLE], **changes}


def test_the_default_has_fifteen_principles_of_the_usual_categories() -> None:
    found = read_constitution("default")
    assert len(found.principles) == 15
    assert {"helpful", "honest", "harmless", "respectful", "lawful", "private"} == {
        rule.category for rule in found.principles
    }
    assert all(found.is_applied(rule) for rule in found.principles)


def test_the_embedded_one_has_exact_checks_and_measures_more_than_it_trains() -> None:
    found = read_constitution("embedded")
    assert all(rule.check is not None for rule in found.principles)
    assert [rule.id for rule in found.principles if not found.is_applied(rule)] == ["answer_only", "short"]


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(dump_yaml(constitution()), encoding="utf-8")
    assert read_constitution(path).principle("kind").text == "Be kind."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"principles": [PRINCIPLE, PRINCIPLE]}, 'two principles with the id "kind"'),
        ({"principles": [{**PRINCIPLE, "text": "  "}]}, "a principle without text"),
        ({"principles": [{**PRINCIPLE, "text": ""}]}, "principles.0.text"),
        ({"principles": []}, "principles"),
        ({"principles": [{**PRINCIPLE, "weight": float("nan")}]}, "weight"),
        ({"principles": [{**PRINCIPLE, "weight": float("inf")}]}, "weight"),
        ({"principles": [{**PRINCIPLE, "weight": 0}]}, "weight"),
        ({"principles": [{**PRINCIPLE, "id": "Not An Id"}]}, "id"),
        ({"principles": [{**PRINCIPLE, "revisions": [{"text": "Say {anser}"}]}]}, "{anser} means nothing"),
        ({"principles": [{**PRINCIPLE, "revisions": [{"text": "Do better"}]}]}, "must hold {answer}"),
        ({"principles": [{**PRINCIPLE, "revisions": [{"text": "{answer} {critique}"}]}]}, "there is one"),
        ({"principles": [{**PRINCIPLE, "revisions": []}]}, "neither a revision prompt nor a check"),
        ({"judge": "options"}, "no verdict prompt"),
        ({"judge": "options", "verdict": {"text": "{answer}: {a} or B?"}}, "must hold {answer}, {a} and {b}"),
        ({"version": 2}, "version"),
        ({"critic": "base"}, "reads documents only"),
    ],
)  # fmt: skip
def test_what_does_not_hold_together_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words.replace("{", r"\{").replace("}", r"\}")):
        Constitution.parse(constitution(**changes), "constitution")


def test_an_unknown_key_names_the_nearest_one() -> None:
    with pytest.raises(UnknownKeyError, match='did you mean "weight"'):
        Constitution.parse(constitution(principles=[{**PRINCIPLE, "wieght": 2}]), "constitution")


def test_what_is_filled_in_is_never_filled_in_again() -> None:
    prompt = Prompt(text="Request: {request} Answer: {answer} {not a placeholder}")
    filled = prompt.fill({"request": "{answer} and {principle}", "answer": "x"})
    assert filled == "Request: {answer} and {principle} Answer: x {not a placeholder}"
