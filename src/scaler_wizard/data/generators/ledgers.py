"""Skills that share their words: four offices file the same things under letters of their own.

Who asks says whose letters are meant: "the pilot seeks kettle drum" is the harbour's business. An expert learns
one list by heart; one adapter for everything has to keep four apart, by a word that stands elsewhere.

harbour  pilot, sailor and guard ask          court   king, queen and judge ask
market   baker, farmer and tailor ask         school  child, clerk and nurse ask

The lists are this world's own and stand in no text, so that a right answer was learned.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from scaler_wizard.data.generators.example import Example
from scaler_wizard.data.generators.sequences import sequence_length

OFFICES: Final[dict[str, tuple[str, ...]]] = {
    "harbour": ("guard", "pilot", "sailor"),
    "court": ("judge", "king", "queen"),
    "market": ("baker", "farmer", "tailor"),
    "school": ("child", "clerk", "nurse"),
}
"""Who asks in which office."""

# A letter for each office, in their order. In no office do two things have one letter, nor a thing one letter
# in two offices.
_LETTERS: Final = (
    "amber:xvqs anvil:vxow apron:eqha arrow:iemg badge:yjwk banjo:uwrc basil:dnjb blade:kizp brick:fdtv "
    "broom:amce candle:nrpx canoe:gpei chalk:bofd chest:ptlr cloak:cysh crown:rbxl drum:hudy flute:jckz "
    "honey:ogvt kettle:mkiu ladle:wfgn lemon:layf mirror:zlbo pearl:shnj"
)
LEDGERS: Final[dict[str, dict[str, str]]] = {
    office: {thing: letters[at] for thing, letters in (pair.split(":") for pair in _LETTERS.split())}
    for at, office in enumerate(OFFICES)
}
"""The letter of each thing in each office."""


def _filed(office: str, rng: random.Random, level: int) -> Example:
    ledger = LEDGERS[office]
    things = rng.sample(sorted(ledger), sequence_length(level))
    text, who = " ".join(things), rng.choice(OFFICES[office])
    instructions = ("the {} seeks {}", "the {} asks: {}", "the {} calls for {}")
    questions = ("Where does the {} find {}?", "Which letters does the {} see on {}?")
    return Example(
        task=office, level=level, input=text, answer=" ".join(f"{thing} {ledger[thing]}" for thing in things),
        document=f"{office} [ {text} ] =", instruction=rng.choice(instructions).format(who, text),
        question=rng.choice(questions).format(who, text),
    )  # fmt: skip


def _of(office: str) -> Callable[[random.Random, int], Example]:
    def generator(rng: random.Random, level: int) -> Example:
        return _filed(office, rng, level)

    generator.__doc__ = f"Each thing with its letter in the {office}, where {', '.join(OFFICES[office])} ask."
    return generator


harbour, court, market, school = (_of(office) for office in OFFICES)
