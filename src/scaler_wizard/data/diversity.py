"""Whether a model that makes tasks makes different ones: how many, and how often only one word apart.

Among enough short tasks every one is close to another by chance alone: of 250 tasks of three letters 37% are
one letter from an earlier one. So the share is compared with that of as many tasks of the world's own. A
generator that has collapsed gives the same few tasks again and again with small changes: most are close.
Pure; knows texts and kinds, no world and no model. Torch-free.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scaler_wizard.data.fingerprints import fingerprint, signature
from scaler_wizard.data.near import KnownTexts

KindAndText = tuple[str, str]
MOST_OF_A_KIND = 250
"""Tasks of one kind that are compared: of 250 of three letters 37% are close by chance, of 2,000 all."""
MOST_WORDS = 40
"""Longer texts are close where their shingles are (similarity 0.8), as rows of a data set are."""


@dataclass(frozen=True, slots=True)
class MadeTasks:
    """Tasks that a model was asked to make, and what the same world has by itself."""

    asked: int
    """How many were asked for."""
    made: Sequence[KindAndText]
    """Those that came, repetitions too."""
    own: Sequence[KindAndText]
    """The world's own, drawn independently: what chance gives."""

    def diversity(self) -> Diversity:
        """How different the made ones are."""
        different = [task for task in dict.fromkeys(self.made) if task[1].strip()]
        near = compared = 0
        by_chance = 0.0
        own = _by_kind(dict.fromkeys(self.own))
        for kind, texts in _by_kind(different).items():
            n = min(len(texts), len(own.get(kind, texts)), MOST_OF_A_KIND)
            near += count_close(_spread(texts, n))
            by_chance += _mean_close(own.get(kind, []), n)
            compared += n
        return Diversity(
            self.asked, len({text for _, text in different}), compared,
            near / compared if compared else 0.0, by_chance / compared if compared else 0.0,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Diversity:
    """How different made tasks are."""

    asked: int
    different: int
    """Of those asked for, how many came and repeat no other."""
    compared: int
    """Tasks that were compared with the others of their kind, at most 250 of each."""
    close: float
    """Share of these that are one word from an earlier one: exchanged, left out, put in or moved."""
    by_chance: float
    """The same share of as many tasks of the world's own."""

    @property
    def share_different(self) -> float:
        """Different tasks for each one asked for."""
        return self.different / self.asked if self.asked else 0.0

    def most_close(self, variety: float, least: float) -> float:
        """What `close` must stay below: what tasks with a part of the world's variety give, and two standard
        errors of it.

        If one of n tasks is close to an earlier one with probability c, tasks spread over half of the world
        are as close as 2 n are: 1 - (1 - c)^2.

        Args:
            variety: the part, 0 to 1.
            least: what is allowed where nothing is close by chance.
        """
        expected = max(least, 1 - (1 - self.by_chance) ** (1 / variety))
        return float(expected + 2 * math.sqrt(expected * (1 - expected) / max(1, self.compared)))


def count_close(texts: Iterable[str]) -> int:
    """How many of some different texts are one word from an earlier one, or nearly like it where long.

    Two texts are one word apart where they are equal after each has lost one word at most (the deletion
    neighbourhood of Mor and Fraenkel 1982, over words).
    """
    seen: set[tuple[str, ...]] = set()
    long_ones = KnownTexts(near=True)
    close = 0
    for text in texts:
        words = tuple(text.casefold().split())
        if len(words) > MOST_WORDS:
            close += long_ones.resembles(signature(text))
            long_ones.add(fingerprint(text), text)
        else:
            forms = {words, *(words[:at] + words[at + 1 :] for at in range(len(words)))}
            close += not seen.isdisjoint(forms)
            seen |= forms
    return close


def _by_kind(tasks: Iterable[KindAndText]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for kind, text in tasks:
        found[kind].append(text)
    return found


def _mean_close(texts: Sequence[str], n: int) -> float:
    """How many of `n` texts are close, on average over as many draws as there are texts for.

    One draw of 100 tasks of two kinds gave 23%, the next 28%.
    """
    draws = len(texts) // n
    return sum(count_close(texts[at * n : (at + 1) * n]) for at in range(draws)) / draws if draws else 0.0


def _spread(texts: Sequence[str], n: int) -> list[str]:
    """`n` of the texts, evenly over all of them: a generator may collapse late."""
    return [texts[at * len(texts) // n] for at in range(n)]
