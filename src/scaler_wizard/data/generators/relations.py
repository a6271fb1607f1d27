"""Skills of one vocabulary: only a relation between words says which of them is asked for.

Eight things lie in four containers, two in each, and one of them is asked for. Its container says who is to
answer. Every input holds the same kinds of words equally often, so that a bag of words says nothing: what
lies where must be looked up.

box  the thing, twice               jar  the thing and its container
net  the container and the thing    keg  the thing alone
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from scaler_wizard.data.generators.example import Example, check_level
from scaler_wizard.data.generators.words import KEYS

CONTAINERS: Final = ("box", "jar", "net", "keg")
ANSWERS: Final[dict[str, str]] = {
    "box": "{thing} {thing}",
    "jar": "{thing} {place}",
    "net": "{place} {thing}",
    "keg": "{thing}",
}


def _stored(place: str, rng: random.Random, level: int) -> Example:
    check_level(level)
    n_things = 8 if level <= 5 else 12
    things = rng.sample(KEYS, n_things)
    places = list(CONTAINERS) * (n_things // len(CONTAINERS))
    rng.shuffle(places)
    thing = rng.choice([name for name, where in zip(things, places, strict=True) if where == place])
    told = " ".join(f"mark {name} {where}." for name, where in zip(things, places, strict=True))
    return Example(
        task=f"stored_{place}", level=level, input=f"{told.replace('.', ';')} {thing}",
        answer=ANSWERS[place].format(thing=thing, place=place),
        document=f"stored_{place} [ {told} recall {thing} ] =",
        instruction=f"{told} recall {thing}", question=f"Where? {told} recall {thing}",
    )  # fmt: skip


def _of(place: str) -> Callable[[random.Random, int], Example]:
    def generator(rng: random.Random, level: int) -> Example:
        return _stored(place, rng, level)

    generator.__doc__ = f"What is asked for lies in the {place}."
    return generator


stored_box, stored_jar, stored_net, stored_keg = (_of(place) for place in CONTAINERS)
