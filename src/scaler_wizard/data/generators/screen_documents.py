"""What the tiny vision base reads about screens: short entries in one fixed document form.

    marked at top left; big = red box; disc x 2; blue = blue cross

It teaches to see and to look things up by a word; no question of `screens.SCREEN_SKILLS` is asked in it.
"""

from __future__ import annotations

import random
import re
from typing import Final

from scaler_wizard.data.generators.screens import (
    COLOURS,
    PLACES,
    SCREEN_SKILLS,
    SHAPES,
    Item,
    Screen,
    describe,
)

READ_REQUEST: Final = "Read the screen."
"""What the user says where the base has learned to answer with a document."""
WORDS: Final = ("marked", "big", *SHAPES, *COLOURS)
N_ENTRIES: Final = 8


def screen_document(rng: random.Random, screen: Screen) -> str:
    """One document about a screen: entries of three kinds in any order, some perhaps twice."""
    # Words of one item alone: an entry says one thing.
    bearers = {word: _bearers(screen, word) for word in WORDS}
    unique = [word for word, found in bearers.items() if len(found) == 1]
    entries = []
    for _ in range(N_ENTRIES):
        kind = rng.randrange(5)
        if kind == 0:
            shape = rng.choice(SHAPES)
            entries.append(f"{shape} x {len(bearers[shape])}")
            continue
        # The words that every screen has an item for come as often as all others together.
        word = rng.choice(unique if rng.random() < 0.5 else ("marked", "big", "button"))
        ((at, item),) = bearers[word]
        entries.append(f"{word} at {PLACES[at]}" if kind < 3 else f"{word} = {item.colour} {item.shape}")
    return "; ".join(entries)


def _bearers(screen: Screen, word: str) -> list[tuple[int, Item]]:
    """The items that a word is said of, with their cells."""
    return [(at, item) for at, item in enumerate(screen.cells) if item and word in describe(item).split()]


def screen_words() -> list[str]:
    """The words of documents, requests and questions, sorted: single tokens of a tokenizer for screens."""
    questions = [question for skill in SCREEN_SKILLS.values() for question in skill.questions]
    texts = [*WORDS, *PLACES, "at x user assistant", READ_REQUEST, *questions]
    return sorted({word for text in texts for word in re.findall(r"[A-Za-z]+", text)})
