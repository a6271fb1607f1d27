"""A scorer that judges by anything but the answer is found out before its numbers are believed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from scaler_wizard.data.generators import Example, sample_example
from scaler_wizard.evals.scorer_audit import Planted, audit_scorer, plant

EXAMPLES = [
    sample_example(task, seed, level, split="held_out")
    for task in ("copy", "reverse", "sort", "add", "syllogism")
    for seed in range(4)
    for level in (1, 4, 8)
]


def planted() -> list[Planted[Example]]:
    pairs = [(example, example.answer) for example in EXAMPLES]
    return plant(pairs, 3, echo=lambda example: example.instruction)


def test_the_exact_verifier_is_trusted() -> None:
    audit = audit_scorer(planted(), lambda example, answer: example.verify(answer))
    assert audit.trusted, audit.reasons
    assert audit.passed_right == audit.n_right == len(EXAMPLES)
    assert audit.passed_wrong == 0
    assert audit.twins_told_apart == 1
    assert json.loads(json.dumps(audit.as_dict()))["trusted"] is True


def test_every_right_answer_has_a_wrong_twin_of_its_length() -> None:
    found = planted()
    for at, item in enumerate(found):
        if item.right:
            twin = found[at + 1]
            assert twin.kind == "twin"
            assert not item.question.verify(twin.answer)
            assert len(twin.answer) == len(item.answer)


LENGTHS: dict[str, Callable[[Example, str], bool]] = {
    "fails the long": lambda example, answer: len(answer) <= 12,
    "fails the short": lambda example, answer: len(answer) > 6,
    "the right length": lambda example, answer: len(answer) == len(example.answer),
    "anything": lambda example, answer: True,
    "nothing": lambda example, answer: False,
}


@pytest.mark.parametrize("scorer", LENGTHS.values(), ids=list(LENGTHS))
def test_a_scorer_that_looks_at_length_only_is_rejected(scorer: Callable[[Example, str], bool]) -> None:
    audit = audit_scorer(planted(), scorer)
    assert not audit.trusted
    assert audit.twins_told_apart == 0, "one verdict for both of equal length"
    assert audit.reasons


def test_a_verifier_that_also_fails_long_answers_is_rejected() -> None:
    """The published case: everything else right, every answer over a limit failed."""
    limit = sorted(len(example.answer) for example in EXAMPLES)[-3]
    audit = audit_scorer(planted(), lambda example, answer: example.verify(answer) and len(answer) < limit)
    assert not audit.trusted
    assert audit.by_length[-1][1] < audit.by_length[-1][2]
    assert all(passed == n for _, passed, n in audit.by_length[:-1])


def test_a_scorer_that_looks_for_the_answer_anywhere_is_rejected() -> None:
    audit = audit_scorer(planted(), lambda example, answer: example.answer in answer)
    assert not audit.trusted
    assert {kind: missed for kind, missed, _ in audit.misjudged}["verbose"] > 0


def test_few_planted_answers_prove_nothing() -> None:
    pairs = [(example, example.answer) for example in EXAMPLES[:5]]
    audit = audit_scorer(plant(pairs, 3), lambda example, answer: example.verify(answer))
    assert not audit.trusted
    assert "at least 20" in audit.reasons[0]
