"""What a critic's replies amount to: a verdict, no verdict, a revision. Pure decisions; torch-free.

Two judges. "options" compares the probabilities of A and B after one question, asked in both orders: a model
that likes A for being A says nothing. "redo" asks for a better answer in several wordings: an answer that all
of them give back unchanged is fine, one that all of them change in the same way has been found wanting.
Whatever is not clear is uncertain, and uncertain is not a vote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scaler_wizard.data.generators.example import CHAT_MARK
from scaler_wizard.data.pairs import Flag


@dataclass(frozen=True, slots=True)
class Item:
    """One answer, to be judged by one principle."""

    id: str
    """Names the answer in its records; unique together with the principle."""
    principle: str
    request: str
    answer: str

    def values(self, text: str, critique: str = "") -> dict[str, str]:
        """What a prompt's placeholders stand for; `text` is the principle's."""
        return {
            "principle": text, "request": self.request, "answer": self.answer, "critique": critique
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the critic says of an item."""

    flag: Flag
    critique: str = ""
    """Its words, where it was asked for any."""
    revised: str | None = None
    """A better answer; None where none was asked for or none is agreed on."""
    reason: str = ""
    """Why there is no verdict."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Of "options": how much likelier (nats) the good option is, in each order."""


def decide_options(good_first: float, good_second: float, margin: float) -> Opinion:
    """The verdict of both orders together.

    Args:
        good_first: log p(A) - log p(B) where A says that the answer keeps to the principle.
        good_second: log p(B) - log p(A) where B says so.
        margin: least difference (nats) that counts, in each order.
    """
    scores = {"good_first": good_first, "good_second": good_second}
    if min(good_first, good_second) >= margin and min(good_first, good_second) > 0:
        return Opinion("clear", scores=scores)
    if max(good_first, good_second) <= -margin and max(good_first, good_second) < 0:
        return Opinion("violates", scores=scores)
    agree = (good_first > 0) == (good_second > 0)
    return Opinion(
        "uncertain", reason="below the margin" if agree else "the orders disagree", scores=scores
    )  # fmt: skip


def decide_redo(
    answer: str,
    revisions: Sequence[str],
    *,
    agree: int | None = None,
    most_length_change: float | None = None,
) -> Opinion:
    """The verdict of several revisions of one answer.

    Args:
        revisions: texts of the same answer, asked for in different wordings; at least one. An empty one, or
            one of another length, is no vote.
        agree: votes that the same text needs, and no other may have; all revisions when None.
        most_length_change: share by which a revision's words may be more or fewer; any number when None.
    """
    assert revisions, "a judge that asks nothing decides nothing"
    needed = len(revisions) if agree is None else min(agree, len(revisions))
    texts = [tidy(revision) for revision in revisions]
    votes = Counter(text for text in texts if text and fits_length(text, answer, most_length_change))
    winners = [text for text, count in votes.items() if count >= needed]
    if len(winners) != 1:
        return Opinion("uncertain", reason=_why_not(texts, votes, needed))
    return Opinion("clear" if winners[0] == tidy(answer) else "violates", revised=winners[0])


def _why_not(texts: Sequence[str], votes: Counter[str], needed: int) -> str:
    if sum(votes.values()) >= needed:
        return "the revisions disagree"
    return "a revision of another length" if all(texts) else "an empty revision"


def pieces_of(answer: str, words: int | None) -> list[str]:
    """The answer in pieces of so many words; the whole answer when None. Never empty."""
    if words is None:
        return [answer]
    split = answer.split()
    return [" ".join(split[at : at + words]) for at in range(0, len(split), words)] or [answer]


def joined(opinions: Sequence[Opinion]) -> Opinion:
    """One opinion of those on an answer's pieces: uncertain where one is, flagged where one is."""
    unsure = next((opinion for opinion in opinions if opinion.flag == "uncertain"), None)
    if unsure is not None:
        return unsure
    revised = " ".join(opinion.revised or "" for opinion in opinions)
    flagged = any(opinion.flag == "violates" for opinion in opinions)
    return Opinion("violates" if flagged else "clear", revised=revised)


def fits_length(revised: str, answer: str, most_change: float | None) -> bool:
    """Whether a revision has about as many words as the answer."""
    n_words = len(answer.split())
    return most_change is None or abs(len(revised.split()) - n_words) <= most_change * n_words


def tidy(reply: str) -> str:
    """What of a raw reply counts: up to a special token, white space at line ends and around it left out."""
    lines = [line.rstrip() for line in reply.split(CHAT_MARK)[0].strip().splitlines()]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class CriticCounts:
    """The critic's verdicts beside what exact checks say of the same answers."""

    n: int
    flagged: int
    cleared: int
    flagged_right: int
    """Of the flagged, how many do violate the principle."""
    cleared_right: int
    """Of the cleared, how many do keep to it."""

    def as_dict(self) -> dict[str, int | float | None]:
        """JSON-ready: the counts, and their shares."""
        return {
            "n": self.n, "flagged": self.flagged, "cleared": self.cleared,
            "uncertain": self.n - self.flagged - self.cleared,
            "precision_flagged": self.flagged_right / self.flagged if self.flagged else None,
            "precision_cleared": self.cleared_right / self.cleared if self.cleared else None,
        }  # fmt: skip


def count_critic(flags: Sequence[Flag], violated: Sequence[bool]) -> CriticCounts:
    """Compare verdicts with exact checks, pair by pair."""
    pairs = list(zip(flags, violated, strict=True))
    return CriticCounts(
        n=len(pairs),
        flagged=sum(flag == "violates" for flag, _ in pairs),
        cleared=sum(flag == "clear" for flag, _ in pairs),
        flagged_right=sum(flag == "violates" and bad for flag, bad in pairs),
        cleared_right=sum(flag == "clear" and not bad for flag, bad in pairs),
    )
