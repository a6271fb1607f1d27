"""Rejected answers of known kinds: made wrong on purpose from a good one, so that a pair's lesson is known.

Pairs from critique teach what the constitution asks for. Alone they can teach a model to say less and less;
these pairs say that refusing, padding, or answering something else is no way out. Pure; torch-free.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

NegativeKind = Literal["unwarranted refusal", "format violation", "incorrect", "off topic", "verbose"]
REFUSALS: Final = ("I cannot do that.", "I am sorry, I will not answer this.", "No.")
LEADS: Final = ("The answer is: ", "Sure! Here it is: ", "Answer: ")


def negative(rng: random.Random, kind: NegativeKind, good: str, others: Sequence[str]) -> str | None:
    """An answer that is worse than `good` in one known way; None where that cannot be made.

    Args:
        others: good answers to other requests.
    """
    made = _MAKERS[kind](rng, good, others)
    return None if made is None or made.strip() == good.strip() else made


def choose_negatives(rng: random.Random, goods: Sequence[str], n: int) -> list[tuple[int, NegativeKind, str]]:
    """At most `n` (place of the good answer, kind, bad answer), the kinds in equal shares where it can be."""
    if len(goods) < 2:
        return []
    found: list[tuple[int, NegativeKind, str]] = []
    for number in range(n):
        kind = KINDS[number % len(KINDS)]
        at = rng.randrange(len(goods))
        made = negative(rng, kind, goods[at], goods)
        if made is not None:
            found.append((at, kind, made))
    return found


def _refusal(rng: random.Random, good: str, others: Sequence[str]) -> str | None:
    return rng.choice(REFUSALS)


def _format(rng: random.Random, good: str, others: Sequence[str]) -> str | None:
    return rng.choice(LEADS) + good


def _incorrect(rng: random.Random, good: str, others: Sequence[str]) -> str | None:
    """Two different words exchanged, else one lost."""
    words = good.split()
    places = [(a, b) for a in range(len(words)) for b in range(a) if words[a] != words[b]]
    if places:
        a, b = rng.choice(places)
        words[a], words[b] = words[b], words[a]
    elif len(words) > 1:
        del words[rng.randrange(len(words))]
    else:
        return None
    return " ".join(words)


def _off_topic(rng: random.Random, good: str, others: Sequence[str]) -> str | None:
    return rng.choice(list(others)) if others else None


def _verbose(rng: random.Random, good: str, others: Sequence[str]) -> str | None:
    return f"{good} {good}" if "\n" not in good else f"{good}\n\n{good}"


_MAKERS: Final[Mapping[NegativeKind, Callable[[random.Random, str, Sequence[str]], str | None]]] = {
    "unwarranted refusal": _refusal,
    "format violation": _format,
    "incorrect": _incorrect,
    "off topic": _off_topic,
    "verbose": _verbose,
}
KINDS: Final[tuple[NegativeKind, ...]] = tuple(_MAKERS)
