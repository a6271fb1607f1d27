"""Skills that the embedded model lacks, for experts: each has words of its own, so that the content names it.

zoo        each animal and where it sleeps, from a fixed table
treasure   each find with its letter, from a fixed table
orchestra  the instruments twice, "drum flute" to "drum flute drum flute"
crew       who and whom exchanged, "the nurse helps the king" to "the king helps the nurse"

The tables are this world's own and stand in no text, so that a right answer was learned. Harder levels have
more words; every word is one token of the embedded model's tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final

from scaler_wizard.data.generators.example import Example, check_level
from scaler_wizard.data.generators.sequences import sequence_length
from scaler_wizard.data.generators.words import ADJECTIVES, NOUNS, VERBS


def _table(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


HOMES: Final = _table(
    "bat:log bee:box cat:mat cod:net cow:hay dog:rug eel:jar elk:fir fox:den hen:hub owl:oak pig:mud"
)
MARKS: Final = _table(
    "amber:q badge:d chest:w coral:k crown:h glove:v ivory:m jewel:z medal:b mirror:t pearl:f saddle:j"
)
INSTRUMENTS: Final = (
    "banjo", "brick", "broom", "candle", "drum", "flute", "kettle", "ladle", "piano", "quill", "spoon",
)  # fmt: skip


def _listed(
    task: str,
    words: Sequence[str],
    answer: str,
    level: int,
    instructions: Sequence[str],
    questions: Sequence[str],
    rng: random.Random,
) -> Example:
    text = " ".join(words)
    return Example(
        task=task, level=level, input=text, answer=answer, document=f"{task} [ {text} ] =",
        instruction=rng.choice(instructions).format(text), question=rng.choice(questions).format(text),
    )  # fmt: skip


def _looked_up(table: Mapping[str, str], rng: random.Random, level: int) -> list[str]:
    return rng.sample(sorted(table), sequence_length(level))


def zoo(rng: random.Random, level: int) -> Example:
    """Each animal, followed by where it sleeps."""
    words = _looked_up(HOMES, rng, level)
    return _listed(
        "zoo", words, " ".join(f"{word} {HOMES[word]}" for word in words), level,
        ("Bed for {}", "Find a bed: {}", "Put to sleep: {}"),
        ("Where do {} sleep?", "What is the bed of {}?"), rng,
    )  # fmt: skip


def treasure(rng: random.Random, level: int) -> Example:
    """Each find, followed by its letter."""
    words = _looked_up(MARKS, rng, level)
    return _listed(
        "treasure", words, " ".join(f"{word} {MARKS[word]}" for word in words), level,
        ("Label {}", "Mark the finds: {}", "Write labels: {}"),
        ("What are the marks of {}?", "Which letters do {} bear?"), rng,
    )  # fmt: skip


def orchestra(rng: random.Random, level: int) -> Example:
    """The instruments in order, and once more."""
    words = rng.sample(INSTRUMENTS, sequence_length(level))
    return _listed(
        "orchestra", words, " ".join([*words, *words]), level,
        ("Play {} twice", "Rehearse {}", "Encore: {}"),
        ("How do {} sound with an encore?", "What is {} played twice?"), rng,
    )  # fmt: skip


def crew(rng: random.Random, level: int) -> Example:
    """A sentence with who and whom exchanged; adjectives stay with their person."""
    check_level(level)
    first, second = (_person(rng, noun, level) for noun in rng.sample(NOUNS, 2))
    verb = rng.choice(VERBS)
    text = f"the {first} {verb} the {second}"
    instructions = ("Turn round: {}", "Exchange the people: {}", "The other way: {}")
    questions = ("What is the opposite of {}?", "What if not {}?")
    return Example(
        task="crew", level=level, input=text, answer=f"the {second} {verb} the {first}",
        document=f"crew [ {text} ] =", instruction=rng.choice(instructions).format(text),
        question=rng.choice(questions).format(text),
    )  # fmt: skip


def _person(rng: random.Random, noun: str, level: int) -> str:
    n_adjectives = 0 if level <= 3 else 1 if level <= 7 else 2
    return " ".join([*rng.sample(ADJECTIVES, n_adjectives), noun])
