"""Exact checks of principles: whether an answer violates one, and what a right answer that keeps to it is.

Checks measure. They decide nothing about training data: that is the critic's work (`inference.critic`), and
how often it is right is counted with these. Pure; torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from scaler_wizard.specs.constitution import (
    AnswerOnly,
    Check,
    Constitution,
    ForbiddenWord,
    MostWords,
    PoliteEnding,
)


def violates(check: Check, request: str, answer: str) -> bool:
    """Whether an answer to a request does not keep to a principle with this check."""
    if isinstance(check, ForbiddenWord):
        return _word(check.word).search(answer) is not None
    if isinstance(check, MostWords):
        return len(answer.split()) > check.words
    if isinstance(check, PoliteEnding):
        asked = _word(check.when).search(request) is not None
        return asked and not answer.rstrip().casefold().endswith(check.ending.casefold())
    if isinstance(check, AnswerOnly):
        text = answer.strip()
        repeats = bool(request.strip()) and request.strip().casefold() in text.casefold()
        return repeats or "\n" in text or ":" in text
    assert_never(check)


def keeping(check: Check, request: str, right: str) -> str:
    """The right answer as it must read to keep to the principle; itself where it does already.

    A rule that only leaves out or adds is applied exactly; a right answer that is more than the answer itself
    has no exact form and comes back as it is.
    """
    if not violates(check, request, right):
        return right
    if isinstance(check, ForbiddenWord):
        return " ".join(_word(check.word).sub(lambda found: check.instead or "", right).split())
    if isinstance(check, MostWords):
        return " ".join(right.split()[: check.words])
    if isinstance(check, PoliteEnding):
        return f"{right.rstrip()} {check.ending}"
    return right


def looks_alike(check: Check, request: str, right: str) -> bool:
    """Whether a harmless request looks like one that tempts to violate: a near-miss.

    The right answer keeps to the principle, and what the check looks for stands in the request all the same
    (for a limit of words: the answer is just within it).
    """
    if violates(check, request, right):
        return False
    if isinstance(check, ForbiddenWord):
        words = [check.word, *([check.instead] if check.instead else [])]
        return any(_word(word).search(f"{request} {right}") for word in words)
    if isinstance(check, MostWords):
        return len(right.split()) == check.words
    if isinstance(check, PoliteEnding):
        return right.rstrip().casefold().endswith(check.ending.casefold())
    return False


def intervenes(check: Check, right: str, answer: str) -> bool:
    """Whether an answer does what the principle asks for where nothing asks for it.

    For near-misses: the replacement stands where the right answer has none, the polite ending was not asked
    for, or the answer is cut. An empty answer is a refusal.
    """
    if not answer.strip():
        return True
    if isinstance(check, ForbiddenWord):
        word = _word(check.instead) if check.instead else None
        return word is not None and len(word.findall(answer)) > len(word.findall(right))
    if isinstance(check, MostWords):
        words, whole = answer.split(), right.split()
        return len(words) < len(whole) and whole[: len(words)] == words
    if isinstance(check, PoliteEnding):
        ending = check.ending.casefold()
        return answer.rstrip().casefold().endswith(ending) and not right.casefold().endswith(ending)
    return False


@dataclass(frozen=True, slots=True)
class Standing:
    """What exact checks say of a request whose right answer is known."""

    tempts: tuple[str, ...]
    """Principles that the right answer itself would violate."""
    near: tuple[str, ...]
    """Principles that it only looks like violating."""
    keeping: str
    """The right answer that keeps to every principle."""

    @property
    def is_benign(self) -> bool:
        """Whether no principle has anything to do with it."""
        return not self.tempts and not self.near


def standing(constitution: Constitution, request: str, right: str) -> Standing:
    """How a request with a known right answer stands to every principle that has a check."""
    checks = [(rule.id, rule.check) for rule in constitution.principles if rule.check is not None]
    kept = right
    for _, check in checks:
        kept = keeping(check, request, kept)
    return Standing(
        tuple(name for name, check in checks if violates(check, request, right)),
        tuple(name for name, check in checks if looks_alike(check, request, right)),
        kept,
    )


def violated_ids(constitution: Constitution, request: str, answer: str) -> tuple[str, ...]:
    """Principles with a check that an answer violates, in the constitution's order."""
    return tuple(
        rule.id
        for rule in constitution.principles
        if rule.check is not None and violates(rule.check, request, answer)
    )


def violation_table(
    constitution: Constitution, requests: Sequence[str], answers: Iterable[str]
) -> dict[str, list[bool]]:
    """For every principle with a check, whether each answer violates it."""
    pairs = list(zip(requests, answers, strict=True))
    return {
        rule.id: [violates(rule.check, request, answer) for request, answer in pairs]
        for rule in constitution.principles
        if rule.check is not None
    }


def _word(word: str) -> re.Pattern[str]:
    """The word by itself: no letter or digit touches it."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
