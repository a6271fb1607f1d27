"""Skills that share their words: four desks get lists of the same things, and each does its own with them.

court   each thing with its letter in the court's ledger      asked by king, queen and judge
school  each thing with its letter in the school's ledger     asked by child, clerk and nurse
echo    the list, and once more                               "say drum lemon again"
rear    the last thing first, the others behind it            "last first: drum lemon"

An expert learns one rule. One adapter for everything has to keep four apart that pull the same words in four
directions: after "drum" comes a letter of one ledger or of the other, or what stands behind it in the list.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from scaler_wizard.data.generators.example import Example
from scaler_wizard.data.generators.sequences import sequence_length

# Letters in the court's ledger and in the school's: no two things of a ledger have the same, no thing has the
# same in both. The ledgers are this world's own and stand in no text, so that a right answer was learned.
_LETTERS: Final = (
    "amber:vs anvil:xw banjo:wc candle:rx canoe:pi crown:bl "
    "drum:uy flute:cz honey:gt kettle:ku lemon:af mirror:lo"
)
_PAIRS: Final = [pair.split(":") for pair in _LETTERS.split()]
LEDGERS: Final[dict[str, dict[str, str]]] = {
    "court": {thing: letters[0] for thing, letters in _PAIRS},
    "school": {thing: letters[1] for thing, letters in _PAIRS},
}
"""The letter of each thing."""
THINGS: Final = tuple(LEDGERS["court"])
ASKING: Final[dict[str, tuple[str, ...]]] = {
    "court": ("judge", "king", "queen"), "school": ("child", "clerk", "nurse"),
}  # fmt: skip
"""Who asks for a ledger's letters."""


def _listed(
    desk: str, answer: Callable[[Sequence[str]], Sequence[str]], instructions: Sequence[str],
    questions: Sequence[str], rng: random.Random, level: int,
) -> Example:  # fmt: skip
    things = rng.sample(THINGS, sequence_length(level))
    text = " ".join(things)
    return Example(
        task=desk, level=level, input=text, answer=" ".join(answer(things)), document=f"{desk} [ {text} ] =",
        instruction=rng.choice(instructions).format(text), question=rng.choice(questions).format(text),
    )  # fmt: skip


def _filed(desk: str, rng: random.Random, level: int) -> Example:
    who = rng.choice(ASKING[desk])
    return _listed(
        desk, lambda things: [word for thing in things for word in (thing, LEDGERS[desk][thing])],
        (f"for the {who}: {{}}", f"the {who} asks: {{}}", f"the {who} seeks: {{}}"),
        (f"Where does the {who} find {{}}?", f"Which letters does the {who} see on {{}}?"), rng, level,
    )  # fmt: skip


def court(rng: random.Random, level: int) -> Example:
    """Each thing, followed by its letter in the court's ledger."""
    return _filed("court", rng, level)


def school(rng: random.Random, level: int) -> Example:
    """Each thing, followed by its letter in the school's ledger."""
    return _filed("school", rng, level)


def echo(rng: random.Random, level: int) -> Example:
    """The things in order, and once more."""
    return _listed(
        "echo", lambda things: [*things, *things], ("twice: {}", "{} and once more", "say {} again"),
        ("How does {} sound with its echo?", "What is {} said twice?"), rng, level,
    )  # fmt: skip


def rear(rng: random.Random, level: int) -> Example:
    """The last thing first, the others behind it in order."""
    return _listed(
        "rear", lambda things: [*things[-1:], *things[:-1]],
        ("last first: {}", "from the rear: {}", "last in front: {}"),
        ("How does {} go with the last in front?", "What if the last of {} led?"), rng, level,
    )  # fmt: skip
