"""SYLLO: hidden words are to be put together from a bank of syllable tiles, by their definitions.

Every slot says how many syllables its word has; the answer is one JSON object,

    {"solutions": [{"ans_num": 1, "syllables": ["can", "dle"], "answer": "CANDLE"}, ...], "unused_tiles": []}

with the tiles that belong to no word (red herrings) under "unused_tiles", in alphabetical order. A bank from
which a word could be put together in two ways is drawn again, so that one answer is right.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scaler_wizard.data.generators.example import Example, check_level
from scaler_wizard.data.generators.syllo_words import SYLLO_WORDS, SylloWord


@dataclass(frozen=True, slots=True)
class SylloLevel:
    """How hard one level is."""

    words: int
    syllables: tuple[int, int]
    """Fewest and most of a word."""
    red_herrings: int


LEVELS: Final[dict[int, SylloLevel]] = {
    1: SylloLevel(4, (2, 2), 0),
    2: SylloLevel(4, (2, 3), 0),
    3: SylloLevel(5, (2, 3), 0),
    4: SylloLevel(5, (2, 4), 1),
    5: SylloLevel(5, (3, 4), 2),
    6: SylloLevel(6, (3, 4), 2),
    7: SylloLevel(6, (3, 5), 3),
    8: SylloLevel(7, (3, 6), 4),
    9: SylloLevel(7, (4, 6), 4),
    10: SylloLevel(8, (4, 6), 5),
}
_RULES: Final = (
    'Answer with one JSON object: "solutions" lists ans_num, syllables and the UPPERCASE answer of every '
    'slot, "unused_tiles" the tiles left over in alphabetical order.'
)


def syllo(rng: random.Random, level: int) -> Example:
    """A puzzle of 4 (level 1) to 8 (level 10) words, with up to five red herrings."""
    check_level(level)
    words, herrings = _draw(rng, LEVELS[level])
    tiles = [tile for word in words for tile in word.syllables] + herrings
    rng.shuffle(tiles)
    slots = [f"{len(word.syllables)} syllables - {word.definition}" for word in words]
    numbered = "\n".join(f"{number}. {slot}" for number, slot in enumerate(slots, start=1))
    bank = " | ".join(tiles)
    opening = rng.choice(("Solve this SYLLO puzzle", "Recover every hidden word from its syllable tiles"))
    asking = rng.choice(("Which words are hidden in these tiles?", "Which words do the syllables make?"))
    return Example(
        task="syllo",
        level=level,
        input=f"{'; '.join(slots)}; {bank}",
        answer=_answer(words, herrings),
        document=f"syllo [ {'; '.join(slots)} ] [ {bank} ] =",
        instruction=f"{opening}.\n{numbered}\nTiles: {bank}\n{_RULES}",
        question=f"{asking}\n{numbered}\nTiles: {bank}\n{_RULES}",
    )


def _draw(rng: random.Random, hard: SylloLevel) -> tuple[list[SylloWord], list[str]]:
    low, high = hard.syllables
    fitting = [word for word in SYLLO_WORDS if low <= len(word.syllables) <= high]
    while True:
        words = rng.sample(fitting, hard.words)
        used = {tile for word in words for tile in word.syllables}
        others = sorted({tile for word in SYLLO_WORDS for tile in word.syllables} - used)
        herrings = sorted(rng.sample(others, hard.red_herrings))
        tiles = [tile for word in words for tile in word.syllables] + herrings
        if all(splits(word.word, len(word.syllables), tiles) == 1 for word in words):
            return words, herrings


def splits(word: str, n_tiles: int, tiles: Sequence[str]) -> int:
    """In how many ways `word` can be put together from `n_tiles` of a bank; equal tiles count as one."""
    bank = Counter(tiles)

    def ways(rest: str, left: int) -> int:
        if not rest or not left:
            return int(not rest and not left)
        total = 0
        for tile in [tile for tile, count in bank.items() if count and rest.startswith(tile)]:
            bank[tile] -= 1
            total += ways(rest[len(tile) :], left - 1)
            bank[tile] += 1
        return total

    return ways(word, n_tiles)


def _answer(words: Sequence[SylloWord], herrings: Sequence[str]) -> str:
    solutions = [
        {"ans_num": number, "syllables": list(word.syllables), "answer": word.word.upper()}
        for number, word in enumerate(words, start=1)
    ]
    return json.dumps({"solutions": solutions, "unused_tiles": list(herrings)})
