"""Letter-sequence tasks: copy, reverse, sort, double, shift, rotate, swap.

Inputs are 3 (levels 1 and 2) to 7 (levels 9 and 10) distinct letters parted by spaces, so that every
element is one token. Document form: `reverse [ a b c ] =`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from scaler_wizard.data.generators.example import Example, check_level
from scaler_wizard.data.generators.words import LETTERS

TRANSFORMS: Final[Mapping[str, Callable[[Sequence[str]], Sequence[str]]]] = {
    "copy": lambda letters: letters,
    "reverse": lambda letters: letters[::-1],
    "sort": sorted,
    "double": lambda letters: [letter for letter in letters for _ in range(2)],
    "shift": lambda letters: [LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in letters],
    "rotate": lambda letters: [*letters[1:], letters[0]],
    "swap": lambda letters: [letters[-1], *letters[1:-1], letters[0]],
}
"""What each task does to its letters."""


def sequence_length(level: int) -> int:
    """Number of letters at `level`: 3, 3, 4, 4, 5, 5, 6, 6, 7, 7. Raises ValueError outside 1..10."""
    check_level(level)
    return 2 + (level + 1) // 2


def sample_letters(rng: random.Random, level: int) -> list[str]:
    """Distinct letters, as many as `level` asks for."""
    return rng.sample(LETTERS, sequence_length(level))


def _make(
    task: str,
    instructions: Sequence[str],
    questions: Sequence[str],
    rng: random.Random,
    level: int,
) -> Example:
    letters = sample_letters(rng, level)
    text = " ".join(letters)
    return Example(
        task=task,
        level=level,
        input=text,
        answer=" ".join(TRANSFORMS[task](letters)),
        document=f"{task} [ {text} ] =",
        instruction=rng.choice(instructions).format(text),
        question=rng.choice(questions).format(text),
    )


def copy(rng: random.Random, level: int) -> Example:
    """The same letters in the same order."""
    return _make(
        "copy",
        ("Copy: {}", "Repeat this: {}", "Write again: {}"),
        ("What do you read in {}?", "How does {} go once more?", "I said {}. What did I say?"),
        rng,
        level,
    )


def reverse(rng: random.Random, level: int) -> Example:
    """The letters from last to first."""
    return _make(
        "reverse",
        ("Reverse: {}", "Turn around: {}", "Write backwards: {}"),
        ("How does {} read backwards?", "What is {} from end to start?", "What is the mirror of {}?"),
        rng,
        level,
    )


def sort(rng: random.Random, level: int) -> Example:
    """The letters in alphabetical order."""
    return _make(
        "sort",
        ("Sort: {}", "Put in order: {}", "Arrange by alphabet: {}"),
        ("What is the order of {}?", "How would a dictionary list {}?", "Which comes first in {}, and then?"),
        rng,
        level,
    )


def double(rng: random.Random, level: int) -> Example:
    """Each letter twice."""
    return _make(
        "double",
        ("Double: {}", "Write each twice: {}", "Say every letter two times: {}"),
        ("What is {} with each letter twice?", "How does {} look in pairs?", "What if {} had twins?"),
        rng,
        level,
    )


def shift(rng: random.Random, level: int) -> Example:
    """Each letter's successor in the alphabet; a follows z."""
    return _make(
        "shift",
        ("Shift: {}", "Move one on: {}", "Take the next letters: {}"),
        ("Which letters follow {}?", "What comes after each of {}?", "What is {} one step later?"),
        rng,
        level,
    )


def rotate(rng: random.Random, level: int) -> Example:
    """The first letter moved to the end."""
    return _make(
        "rotate",
        ("Rotate: {}", "Move the first to the end: {}", "Turn the wheel: {}"),
        (
            "What is {} with the first one last?",
            "How does {} look after one turn?",
            "What if {} began one on?",
        ),
        rng,
        level,
    )


def swap(rng: random.Random, level: int) -> Example:
    """The first and the last letter exchanged."""
    return _make(
        "swap",
        ("Swap: {}", "Exchange the ends: {}", "Trade first and last: {}"),
        (
            "What is {} with its ends exchanged?",
            "How does {} look with ends traded?",
            "What if {} swapped ends?",
        ),
        rng,
        level,
    )
