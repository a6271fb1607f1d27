"""SYLLO, binary arithmetic, uniform levels, and files of generated rows."""

from __future__ import annotations

import json
import random
from string import ascii_lowercase

import pytest

from scaler_wizard.data.generate import generated_rows, parse_levels, parse_tasks
from scaler_wizard.data.generators import (
    DIFFICULTIES,
    GENERATORS,
    SEEDLING_TASKS,
    difficulty_of,
    held_out,
    sample_example,
    verify_answer,
)
from scaler_wizard.data.generators.syllo import LEVELS, splits
from scaler_wizard.data.generators.syllo_words import SYLLO_WORDS
from scaler_wizard.errors import SpecError


def test_word_list() -> None:
    words = [word.word for word in SYLLO_WORDS]
    assert len(words) == len(set(words)) > 150
    assert len({word.definition for word in SYLLO_WORDS}) == len(words)
    for word in SYLLO_WORDS:
        assert set(word.word) <= set(ascii_lowercase), word
        assert word.word not in word.definition.split(), word
        assert not set(word.definition) & set(",.;:?[]=|"), word
    for level in LEVELS.values():
        low, high = level.syllables
        assert sum(low <= len(word.syllables) <= high for word in SYLLO_WORDS) > 5 * level.words


@pytest.mark.parametrize("level", LEVELS)
def test_syllo_puzzle_has_one_solution_from_its_own_bank(level: int) -> None:
    for seed in range(30):
        example = sample_example("syllo", seed, level, split="train")
        answer = json.loads(example.answer)
        bank = example.instruction.split("Tiles: ")[1].split("\n")[0].split(" | ")
        used = [tile for solution in answer["solutions"] for tile in solution["syllables"]]
        assert sorted(used + answer["unused_tiles"]) == sorted(bank)
        assert len(answer["unused_tiles"]) == LEVELS[level].red_herrings
        assert len(answer["solutions"]) == LEVELS[level].words
        known = {word.definition: word for word in SYLLO_WORDS}
        slots = [line.split(" - ", 1) for line in example.instruction.split("\n") if " syllables - " in line]
        for (slot, definition), solution in zip(slots, answer["solutions"], strict=True):
            word = known[definition]
            assert slot == f"{solution['ans_num']}. {len(word.syllables)} syllables"
            assert solution["answer"] == "".join(solution["syllables"]).upper() == word.word.upper()
            assert splits(word.word, len(word.syllables), bank) == 1


def test_ways_to_put_a_word_together() -> None:
    assert splits("banana", 3, ["ba", "na", "na"]) == 1
    assert splits("banana", 3, ["ba", "na", "na", "ban", "a"]) == 2
    assert splits("banana", 2, ["ba", "na", "na"]) == 0


def test_syllo_verifier_takes_the_same_json_and_no_other() -> None:
    example = sample_example("syllo", 1, 6, split="train")
    answer = json.loads(example.answer)
    right = [
        example.answer, f" {example.answer}\n<|end|>", json.dumps(answer, indent=2),
        json.dumps(dict(reversed(answer.items()))),
    ]  # fmt: skip
    assert all(example.verify(text) for text in right)
    first = answer["solutions"][0]
    wrong = [
        "", "{}", "null", example.answer[:-1], f"{example.answer} done", f"Here: {example.answer}",
        json.dumps(answer | {"note": 1}), json.dumps(answer | {"solutions": answer["solutions"][::-1]}),
        "[" * 100_000, json.dumps(answer | {"unused_tiles": []}),
        json.dumps(answer | {"solutions": [first | {"ans_num": 1.0}, *answer["solutions"][1:]]}),
        json.dumps(answer | {"solutions": [first | {"answer": first["answer"].lower()}]}),
        '{"unused_tiles": [], ' + example.answer[1:],
    ]  # fmt: skip
    assert not any(example.verify(text) for text in wrong)


@pytest.mark.parametrize("task", ["binary_add", "binary_subtract", "to_binary"])
def test_binary_answers(task: str) -> None:
    for seed in range(200):
        example = sample_example(task, seed, 1 + seed % 10, split="train")
        first, _, rest = example.input.partition(" ")
        if task == "to_binary":
            expected = int(first)
        else:
            sign = -1 if rest[0] == "-" else 1
            expected = int(first, 2) + sign * int(rest[2:], 2)
        assert int(example.answer, 2) == expected >= 0
        assert example.answer == "0" or example.answer[0] == "1"
        assert not example.verify(f"0{example.answer}")


def test_levels_have_names() -> None:
    assert [difficulty_of(level) for level in range(1, 11)] == ["easy"] * 3 + ["medium"] * 4 + ["hard"] * 3
    assert sorted(level for levels in DIFFICULTIES.values() for level in levels) == list(range(1, 11))
    with pytest.raises(ValueError, match="expected"):
        difficulty_of(11)


@pytest.mark.parametrize("task", GENERATORS)
def test_both_sides_of_the_split_exist_at_every_level(task: str) -> None:
    """`sample_example` draws until it finds one."""
    for level in range(1, 11):
        sides = {held_out(GENERATORS[task](random.Random(seed), level)) for seed in range(200)}
        assert sides == {True, False}, level


def test_seedling_tasks_are_generators_in_their_old_order() -> None:
    assert tuple(GENERATORS)[: len(SEEDLING_TASKS)] == SEEDLING_TASKS


def test_generated_rows_are_unique_verified_and_named_by_their_seed() -> None:
    rows = list(generated_rows(tuple(GENERATORS), range(1, 11), 400, 5))
    assert rows == list(generated_rows(tuple(GENERATORS), range(1, 11), 400, 5))
    assert len({row.prompt for row in rows}) == 400
    assert {row.task for row in rows} == set(GENERATORS)
    for row in rows:
        assert verify_answer(row.task, row.answer, f" {row.answer}\n")
        assert not verify_answer(row.task, row.answer, f"{row.answer} x")
        example = sample_example(row.task, row.seed, row.level, split="train")
        assert (example.instruction, example.answer) == (row.prompt, row.answer)
    assert rows != list(generated_rows(tuple(GENERATORS), range(1, 11), 400, 6))


def test_more_rows_than_there_are_end_in_words() -> None:
    with pytest.raises(SpecError, match="different rows"):
        list(generated_rows(("to_binary",), (1,), 100, 0))


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("easy", (1, 2, 3)),
        ("hard", (8, 9, 10)),
        ("4", (4,)),
        ("2-4", (2, 3, 4)),
        ("all", tuple(range(1, 11))),
    ],
)
def test_levels_by_name_and_number(text: str, levels: tuple[int, ...]) -> None:
    assert parse_levels(text) == levels


@pytest.mark.parametrize("text", ["", "0", "11", "4-2", "1-", "-3", "easy-hard", "²", "9" * 5000])
def test_levels_that_are_none(text: str) -> None:
    with pytest.raises(SpecError, match="no level"):
        parse_levels(text)


def test_tasks_by_name() -> None:
    assert parse_tasks("add, sort") == ("add", "sort")
    assert parse_tasks("all") == tuple(GENERATORS)
    with pytest.raises(SpecError, match="no task"):
        parse_tasks("add,juggle")
