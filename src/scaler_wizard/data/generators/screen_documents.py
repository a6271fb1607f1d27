"""What the tiny vision base reads about screens: listings, look-ups and counts, in one fixed document form.

It teaches to see; no question of `screens.SCREEN_SKILLS` is asked in it, and no answer stands in their form.
"""

from __future__ import annotations

import random
from typing import Final

from scaler_wizard.data.generators.screens import COLOURS, PLACES, SHAPES, Screen, describe

READ_REQUEST: Final = "Read the screen."
"""What the user says where the base has learned to answer with a document."""


def screen_document(rng: random.Random, screen: Screen) -> str:
    """One document about a screen: three of its sections, in any order."""
    sections = [_cells(screen), _index(rng, screen), _counts(rng, screen), _lookups(rng, screen)]
    return "\n".join(rng.sample(sections, 3))


def _cells(screen: Screen) -> str:
    """Every cell, row by row."""
    cells = ("none" if item is None else describe(item) for item in screen.cells)
    return "cells: " + ", ".join(cells)


def _index(rng: random.Random, screen: Screen) -> str:
    """Some words, each with the items they are said of, or with the places of these."""
    words = ["marked", "big", "button", *rng.sample((*SHAPES[:3], *COLOURS), 2)]
    lines = []
    for word in rng.sample(words, 4):
        said = [
            (describe(item), PLACES[at])
            for at, item in enumerate(screen.cells)
            if item is not None and word in describe(item).split()
        ]
        sign, which = rng.choice((("=", 0), ("at", 1)))
        lines.append(f"{word} {sign} " + (" and ".join(entry[which] for entry in said) or "none"))
    return "index: " + ", ".join(lines)


def _counts(rng: random.Random, screen: Screen) -> str:
    """How many items have an attribute."""
    words = rng.sample(SHAPES, 4)
    counts = (f"{word} {sum(item.shape == word for item in screen.items)}" for word in words)
    return f"counts: items {len(screen.items)}, " + ", ".join(counts)


def _lookups(rng: random.Random, screen: Screen) -> str:
    """Some cells by their places."""
    looked = rng.sample(range(len(PLACES)), 3)
    cells = ((PLACES[at], screen.cells[at]) for at in looked)
    return "look: " + ", ".join(
        f"{place} = {'none' if item is None else describe(item)}" for place, item in cells
    )
