"""The experts' skills: right by an independent reading, each with words of its own."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from scaler_wizard.data.generators import (
    DESK_SKILLS,
    EXPERT_SKILLS,
    LEXICAL_SKILLS,
    RELATIONAL_SKILLS,
    SEEDLING_TASKS,
    Example,
    sample_example,
)
from scaler_wizard.data.generators.desks import ASKING, LEDGERS, THINGS
from scaler_wizard.data.generators.skills import HOMES, MARKS
from scaler_wizard.data.sample import load_tokenizer
from scaler_wizard.evals.validation import validation_set
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.specs.continual import ValidationSection


def right_by_hand(example: Example) -> str:
    words = example.input.split()
    if example.task == "crew":
        at = next(i for i, word in enumerate(words) if words[i + 1] == "the")
        first, verb, second = words[1:at], words[at], words[at + 2 :]
        return " ".join(["the", *second, verb, "the", *first])
    if example.task == "orchestra":
        return f"{example.input} {example.input}"
    table = {"zoo": HOMES, "treasure": MARKS}[example.task]
    return " ".join(f"{word} {table[word]}" for word in words)


@pytest.mark.parametrize("task", LEXICAL_SKILLS)
@pytest.mark.parametrize("level", [1, 5, 10])
def test_answers_are_right_and_verified(task: str, level: int) -> None:
    for seed in range(30):
        example = sample_example(task, seed, level, split="train")
        assert example.answer == right_by_hand(example)
        assert example.verify(f" {example.answer}<|end|>")
        assert not example.verify(f" {example.answer} x")


def test_tables_are_one_to_one() -> None:
    for table in (HOMES, MARKS):
        assert len(set(table.values())) == len(table) == 12


def test_each_skill_has_words_of_its_own() -> None:
    """What a router may go by: no word of one skill's inputs occurs in another's."""
    words = {
        task: {
            word
            for seed in range(200)
            for word in sample_example(task, seed, 1 + seed % 10, split="train").input.split()
        }
        for task in LEXICAL_SKILLS
    }
    for one, other in itertools.combinations(words.values(), 2):
        assert one.isdisjoint(other)


def test_every_word_is_one_token() -> None:
    tokenizer = load_tokenizer(resolve_model("seedling"))
    for task in LEXICAL_SKILLS + DESK_SKILLS:
        for seed in range(20):
            example = sample_example(task, seed, 5, split="train")
            for word in [*example.input.split(), *example.answer.split()]:
                assert len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1, word


@pytest.mark.parametrize("task", RELATIONAL_SKILLS)
@pytest.mark.parametrize("level", [1, 10])
def test_where_a_thing_lies_decides_who_answers(task: str, level: int) -> None:
    place = task.removeprefix("stored_")
    expected = {"box": "{0} {0}", "jar": "{0} {1}", "net": "{1} {0}", "keg": "{0}"}[place]
    for seed in range(30):
        example = sample_example(task, seed, level, split="train")
        told, _, thing = example.instruction.partition(" recall ")
        lies = dict(line.removeprefix("mark ").split() for line in told.rstrip(".").split(". "))
        assert lies[thing] == place
        assert Counter(lies.values()) == dict.fromkeys(("box", "jar", "net", "keg"), len(lies) // 4)
        assert example.answer == expected.format(thing, place)


@pytest.mark.parametrize("task", DESK_SKILLS)
@pytest.mark.parametrize("level", [1, 10])
def test_each_desk_does_its_own_with_the_same_things(task: str, level: int) -> None:
    for seed in range(30):
        example = sample_example(task, seed, level, split="train")
        things = example.input.split()
        assert set(things) <= set(THINGS)
        expected = {
            "court": [word for thing in things for word in (thing, LEDGERS["court"][thing])],
            "school": [word for thing in things for word in (thing, LEDGERS["school"][thing])],
            "echo": things * 2,
            "rear": [things[-1], *things[: len(things) - 1]],
        }
        assert example.answer.split() == expected[task]
        for said in (example.instruction, example.question):
            assert example.input in said
            people = {desk for desk, askers in ASKING.items() for who in askers if f"the {who}" in said}
            assert people == ({task} if task in LEDGERS else set())


def test_no_letter_of_one_ledger_is_right_in_the_other() -> None:
    court, school = LEDGERS["court"], LEDGERS["school"]
    assert set(court) == set(school) == set(THINGS)
    assert len(THINGS) == len(set(court.values())) == len(set(school.values())) == 12
    assert all(court[thing] != school[thing] for thing in THINGS)


def test_nothing_general_asks_for_them() -> None:
    assert set(EXPERT_SKILLS).isdisjoint(SEEDLING_TASKS)
    questions = validation_set(ValidationSection(), 0, None)
    asked = {row.task for rows in questions.rows.values() for row in rows}
    assert asked >= set(SEEDLING_TASKS)
    assert asked.isdisjoint(EXPERT_SKILLS)
