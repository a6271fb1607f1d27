"""The generated tasks: right answers, exact verifiers, a split that holds, needles at their depth."""

from __future__ import annotations

import random

import pytest

from scaler_wizard.data.generators import (
    GENERATORS,
    Example,
    held_out,
    multi_key_needle,
    needle_document,
    recency_document,
    retrieval_text,
    sample_example,
)
from scaler_wizard.data.generators.words import ADJECTIVES, KEYS, LETTERS, NOUNS, VALUES, VERBS

# One row per task, answered by hand: the generators may not mark their own work.
ANSWERED_BY_HAND = {
    "copy [ q a z ] =": "q a z",
    "reverse [ q a z ] =": "z a q",
    "sort [ q a z ] =": "a q z",
    "double [ q a z ] =": "q q a a z z",
    "shift [ q a z ] =": "r b a",
    "rotate [ q a z ] =": "a z q",
    "swap [ q a z b ] =": "b a z q",
    "replace a with m in [ q a z ] =": "q m z",
    "remove a from [ q a z ] =": "q z",
    "append m to [ q a z ] =": "q a z m",
}


class Scripted(random.Random):
    """A generator whose samples and choices are written down, so that a task gets the input we answered."""

    def __init__(self, letters: str, choices: str) -> None:
        super().__init__(0)
        self.letters, self.choices_left = letters.split(), list(choices)

    def sample(self, population: object, k: int, *, counts: object = None) -> list[str]:  # type: ignore[override]
        return self.letters

    def choice(self, seq: object) -> object:  # type: ignore[override]
        wanted = self.choices_left[:1]
        if wanted and wanted[0] in seq:  # type: ignore[operator]
            return self.choices_left.pop(0)
        return seq[0]  # type: ignore[index]


@pytest.mark.parametrize(("document", "answer"), ANSWERED_BY_HAND.items())
def test_answers_equal_those_found_by_hand(document: str, answer: str) -> None:
    task = document.split()[0]
    letters = document[document.index("[") + 1 : document.index("]")]
    choices = {"replace": "am", "remove": "a", "append": "m"}.get(task, "")
    example = GENERATORS[task](Scripted(letters, choices), 1)
    assert (example.document, example.answer) == (document, answer)


@pytest.mark.parametrize("task", ["add", "subtract"])
def test_arithmetic_answers_evaluate(task: str) -> None:
    for seed in range(200):
        example = sample_example(task, seed, 1 + seed % 10, split="train")
        assert int(example.answer) == eval(example.input)
        assert int(example.answer) >= 0


def test_syllogism_answer_follows_by_two_steps_and_no_other() -> None:
    for seed in range(200):
        example = sample_example("syllogism", seed, 1 + seed % 10, split="train")
        premises, _, subject = example.input.rpartition("; ")
        follows = dict(premise.removeprefix("all ").split(" are ") for premise in premises.split("; "))
        assert follows[follows[subject]] == example.answer
        assert example.answer not in follows


@pytest.mark.parametrize("task", GENERATORS)
def test_example_states_its_input_in_every_form_and_is_named_by_its_seed(task: str) -> None:
    for level in range(1, 11):
        example = sample_example(task, 3, level, split="train")
        assert example == sample_example(task, 3, level, split="train")
        assert (example.task, example.level) == (task, level)
        words = set(example.input.replace(";", "").split()) - set("+-")
        for form in (example.document, example.instruction, example.question):
            bare = form.translate(str.maketrans("[]=;,.?:", "        ")).split()
            assert words <= set(bare), form
        # A base model must not meet its document form when it is given an instruction.
        assert not example.instruction.startswith(example.document[:8])
        assert not example.question.startswith(example.document[:8])


@pytest.mark.parametrize("task", GENERATORS)
def test_harder_levels_have_longer_inputs(task: str) -> None:
    def mean_length(level: int) -> float:
        return sum(len(GENERATORS[task](random.Random(seed), level).input) for seed in range(100)) / 100

    assert mean_length(10) > mean_length(1)


@pytest.mark.parametrize("level", [0, 11])
def test_levels_outside_1_to_10_are_refused(level: int) -> None:
    for generator in GENERATORS.values():
        with pytest.raises(ValueError, match=r"expected 1\.\.10"):
            generator(random.Random(0), level)


def test_verifier_takes_the_first_line_up_to_a_special_token_and_nothing_else() -> None:
    example = Example("copy", 1, "a b c", "a b c", "copy [ a b c ] =", "Copy: a b c", "What is a b c?")
    for right in (" a b c\n", "a b c", " a b c<|end|>", "\na b c\nand more", " a b c <|eos|>x"):
        assert example.verify(right), right
    for wrong in (
        "",
        " a b",
        " a b c d",
        "a  b c",
        "A b c",
        "the answer is a b c",
        "<|end|>a b c",
        "x\na b c",
    ):
        assert not example.verify(wrong), wrong


def test_split_is_by_input_alone_and_holds_out_a_fifth() -> None:
    examples = [GENERATORS["copy"](random.Random(seed), 10) for seed in range(2000)]
    share = sum(map(held_out, examples)) / len(examples)
    assert 0.17 < share < 0.23
    for example in examples[:50]:
        same_input = Example("reverse", 1, example.input, "", "", "", "")
        assert held_out(same_input) == held_out(example)


@pytest.mark.parametrize("task", GENERATORS)
def test_training_and_held_out_samples_share_no_input(task: str) -> None:
    train = {sample_example(task, seed, 1 + seed % 10, split="train").input for seed in range(200)}
    test = {sample_example(task, seed, 1 + seed % 10, split="held_out").input for seed in range(200)}
    assert train.isdisjoint(test)
    with pytest.raises(ValueError, match="expected"):
        sample_example(task, 0, 1, split="test")


def test_word_lists_are_disjoint_so_that_filler_never_answers() -> None:
    lists = [KEYS, VALUES, ADJECTIVES, NOUNS, VERBS, LETTERS]
    assert len(KEYS) == len(VALUES) == 64
    assert len(set().union(*lists)) == sum(map(len, lists))


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("n_tokens", [128, 1024, 8192])
def test_needle_lies_once_at_its_depth_and_the_length_is_met(depth: float, n_tokens: int) -> None:
    def count_tokens(text: str) -> int:
        return len(text.split())

    needle = needle_document(random.Random(5), depth=depth, n_tokens=n_tokens, count_tokens=count_tokens)
    lines = needle.prompt.split("\n")
    assert lines[-1] == f"recall {needle.key}"
    assert [line for line in lines if needle.key in line] == [
        f"mark {needle.key} {needle.answer}.",
        lines[-1],
    ]
    place = lines.index(f"mark {needle.key} {needle.answer}.")
    assert place / (len(lines) - 2) == pytest.approx(depth, abs=1 / (len(lines) - 2))
    assert n_tokens - 10 < count_tokens(needle.text) <= n_tokens
    assert needle.verify(f" {needle.answer}\nmore")
    assert needle.verify(needle.answer + "<|eos|>")
    assert not needle.verify(" " + next(value for value in VALUES if value != needle.answer))
    assert not needle.verify("")


def test_needle_without_distractors_is_the_only_fact() -> None:
    needle = needle_document(random.Random(1), depth=0.5, n_lines=12, max_distractors=0)
    assert needle.prompt.count("mark ") == 1
    assert needle.prompt.count("\n") == 12


def test_needle_answers_are_uniform_so_that_chance_is_what_it_says() -> None:
    needles = [needle_document(random.Random(seed), depth=0.5, n_lines=4) for seed in range(3200)]
    counts = [sum(needle.answer == value for needle in needles) for value in VALUES]
    assert needles[0].chance == 1 / 64
    # Mean 50, standard deviation 7: five of them either side.
    assert min(counts) > 15
    assert max(counts) < 85


def test_length_is_given_in_one_way_only() -> None:
    rng = random.Random(0)
    with pytest.raises(ValueError, match="exactly one"):
        needle_document(rng, depth=0.5)
    with pytest.raises(ValueError, match="exactly one"):
        needle_document(rng, depth=0.5, n_lines=3, n_tokens=20, count_tokens=len)
    with pytest.raises(ValueError, match="count_tokens"):
        needle_document(rng, depth=0.5, n_tokens=20)
    with pytest.raises(ValueError, match=r"expected 0\.\.1"):
        needle_document(rng, depth=1.5, n_lines=3)


def test_multi_key_needle_asks_for_one_of_n_facts() -> None:
    needle = multi_key_needle(random.Random(0), n_keys=9, depth=0.5, n_tokens=900, count_tokens=len)
    facts = [line for line in needle.prompt.split("\n") if line.startswith("mark ")]
    assert len(facts) == 9
    assert facts[4] == f"mark {needle.key} {needle.answer}."
    assert 840 < len(needle.prompt) <= 900
    with pytest.raises(ValueError, match="fewer keys"):
        multi_key_needle(random.Random(0), n_keys=9, depth=0.5, n_tokens=90, count_tokens=len)


def test_recency_answer_is_the_last_of_the_values() -> None:
    for seed in range(50):
        example = recency_document(random.Random(seed), n_updates=3, n_lines=15)
        lines = example.prompt.split("\n")
        values = [line.split()[2][:-1] for line in lines if line.startswith(f"mark {example.key} ")]
        assert len(values) == len(set(values)) == 3
        assert values[-1] == example.answer
        place = max(i for i, line in enumerate(lines) if line.startswith(f"mark {example.key} "))
        assert place / (len(lines) - 2) == pytest.approx(example.depth)


def test_retrieval_text_answers_with_the_latest_fact() -> None:
    updated = 0
    for seed in range(100):
        text = retrieval_text(random.Random(seed), n_queries=4, n_lines=20, update_share=0.5)
        latest: dict[str, str] = {}
        for line in text.splitlines():
            kind, key, value = line.rstrip(".").split()[:3]
            if kind == "mark":
                updated += key in latest
                latest[key] = value
            elif kind == "recall":
                assert latest[key] == value
        assert text.count("recall ") == 4
    assert 30 < updated < 70
