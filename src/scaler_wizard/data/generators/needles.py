"""Needles of one token: facts hidden among filler and other facts, then a question for one of them.

A prompt reads

    mark acorn fox.
    The calm judge meets the pale pilot.
    mark beach ivy.
    recall acorn

and continues with " fox". Keys and values are drawn from two disjoint lists of 64 words, so chance is 1/64
(`NeedleExample.chance`) and one prediction decides. Multi-digit passkeys are no substitute at the
seedling's size: a model of 1M parameters does not learn them.

Length comes from `n_lines`, or from `n_tokens` with `count_tokens`, which makes a document for any tokenizer
and any window: keys are used at most once as a fact, the 24 filler sentences repeat.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from scaler_wizard.data.generators.words import ADJECTIVES, KEYS, NOUNS, VALUES, VERBS

CountTokens = Callable[[str], int]

# Share of the lines around the needle that are facts about other keys: as many as fillers, so that neither
# "the only fact" nor "the only value" gives the needle away.
DISTRACTOR_SHARE = 0.5


# Fixed sentences, not random ones: a filler soon known by heart leaves the gradient to keys and values.
FILLER_LINES: Final[tuple[str, ...]] = tuple(
    f"The {ADJECTIVES[i % 12]} {NOUNS[(5 * i + i // 12) % 12]} {VERBS[(7 * i + i // 12) % 12]} "
    f"the {ADJECTIVES[(i + 5) % 12]} {NOUNS[(5 * i + i // 12 + 3) % 12]}.\n"
    for i in range(24)
)


@dataclass(frozen=True, slots=True)
class NeedleExample:
    """A retrieval prompt with its single-token answer."""

    prompt: str
    """Ends with `recall key`; the continuation is " " + answer."""
    answer: str
    key: str
    depth: float
    """Where the needle lies, as a share of the lines before the question: 0 first, 1 last."""
    choices: tuple[str, ...]
    """All values an answer may take."""

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the choices."""
        return 1 / len(self.choices)

    @property
    def text(self) -> str:
        """The prompt with its answer and a newline."""
        return f"{self.prompt} {self.answer}\n"

    def verify(self, output: str) -> bool:
        """Whether the first word of a raw continuation is the answer."""
        words = output.replace("\n", " ").replace(".", " ").replace("<|", " <|").split()
        return bool(words) and words[0] == self.answer


def fact_line(key: str, value: str) -> str:
    """One fact as a line of text."""
    return f"mark {key} {value}.\n"


def filler_line(rng: random.Random) -> str:
    """One of 24 fixed sentences that hold no key and no value."""
    return rng.choice(FILLER_LINES)


def query(key: str) -> str:
    """The question for `key`, without its answer."""
    return f"recall {key}"


def _haystack(
    rng: random.Random,
    keys: list[str],
    fixed: Sequence[str],
    n_lines: int | None,
    n_tokens: int | None,
    count_tokens: CountTokens | None,
    max_distractors: int | None,
) -> list[str]:
    """Lines around `fixed` up to the wanted length; takes the distractors' keys from `keys`.

    The token count of a prompt is taken as the sum over its lines, which holds for any tokenizer that does
    not merge across a line's end.
    """
    if (n_lines is None) == (n_tokens is None):
        raise ValueError("give exactly one of n_lines and n_tokens")
    if n_tokens is not None and count_tokens is None:
        raise ValueError("n_tokens needs count_tokens, the tokenizer's length function")
    n_facts = len(keys) if max_distractors is None else min(len(keys), max_distractors)
    used = sum(count_tokens(line) for line in fixed) if count_tokens else 0
    lines: list[str] = []
    while True:
        fact = n_facts > 0 and rng.random() < DISTRACTOR_SHARE
        line = fact_line(keys[-1], rng.choice(VALUES)) if fact else filler_line(rng)
        if n_tokens is not None and count_tokens is not None:
            used += count_tokens(line)
            if used > n_tokens:
                return lines
        elif len(lines) + len(fixed) > (n_lines or 0):
            return lines
        lines.append(line)
        if fact:
            keys.pop()
            n_facts -= 1


def needle_document(
    rng: random.Random,
    *,
    depth: float,
    n_lines: int | None = None,
    n_tokens: int | None = None,
    count_tokens: CountTokens | None = None,
    max_distractors: int | None = None,
) -> NeedleExample:
    """One needle at `depth` (0..1) among distracting facts and filler.

    n_lines: lines before the question, or
    n_tokens: most tokens that prompt and answer may take, by `count_tokens` (text -> tokens, without special
    tokens). At most one line's worth stays unused.
    max_distractors: most facts about other keys (default: all 63).

    Raises ValueError for a depth outside 0..1, and unless exactly one length is given.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}, expected 0..1")
    keys = rng.sample(KEYS, len(KEYS))
    key, value = keys.pop(), rng.choice(VALUES)
    needle, prompt_end = fact_line(key, value), query(key)
    fixed = (needle, f"{prompt_end} {value}")
    lines = _haystack(rng, keys, fixed, n_lines, n_tokens, count_tokens, max_distractors)
    lines.insert(round(depth * len(lines)), needle)
    return NeedleExample("".join(lines) + prompt_end, value, key, depth, VALUES)


def multi_key_needle(
    rng: random.Random,
    *,
    n_keys: int,
    depth: float,
    n_tokens: int | None = None,
    count_tokens: CountTokens | None = None,
) -> NeedleExample:
    """One needle among `n_keys` facts of the same form (RULER's multi-key needle, arXiv:2404.06654).

    Without a length, the document is facts only; with `n_tokens`, filler brings it to that length.
    Raises ValueError for n_keys outside 1..64 and when the facts alone do not fit.
    """
    if not 1 <= n_keys <= len(KEYS):
        raise ValueError(f"n_keys is {n_keys}, expected 1..{len(KEYS)}")
    if not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}, expected 0..1")
    facts = [fact_line(key, rng.choice(VALUES)) for key in rng.sample(KEYS, n_keys)]
    if n_tokens is not None and count_tokens is not None:
        ending = "recall walnut yew"
        used = sum(count_tokens(line) for line in [*facts, ending])
        if used > n_tokens:
            raise ValueError(f"{n_keys} facts take {used} tokens, n_tokens is {n_tokens}: ask for fewer keys")
        fillers = _haystack(rng, [], [*facts, ending], None, n_tokens, count_tokens, 0)
        places = sorted(rng.randrange(len(fillers) + 1) for _ in facts)
        lines: list[str] = []
        for index in range(len(fillers) + 1):
            lines.extend(fact for fact, place in zip(facts, places, strict=True) if place == index)
            lines.extend(fillers[index : index + 1])
    else:
        lines = list(facts)
    _, key, value = facts[round(depth * (n_keys - 1))].rstrip(".\n").split()
    return NeedleExample("".join(lines) + query(key), value, key, depth, VALUES)


def recency_document(
    rng: random.Random,
    *,
    n_updates: int = 2,
    n_lines: int | None = None,
    n_tokens: int | None = None,
    count_tokens: CountTokens | None = None,
) -> NeedleExample:
    """A key whose value changes `n_updates` times in one document; the last value is the answer.

    `depth` of the result is where that last value lies. Lengths as in `needle_document`.
    Raises ValueError for fewer than two updates.
    """
    if n_updates < 2:
        raise ValueError(f"n_updates is {n_updates}, expected at least 2")
    keys = rng.sample(KEYS, len(KEYS))
    key, values = keys.pop(), rng.sample(VALUES, n_updates)
    updates = [fact_line(key, value) for value in values]
    fixed = (*updates, f"{query(key)} {values[-1]}")
    lines = _haystack(rng, keys, fixed, n_lines, n_tokens, count_tokens, None)
    places = sorted(rng.randrange(len(lines) + 1) for _ in updates)
    # From the back, so that the places found for the earlier lines still hold.
    for place, line in reversed(list(zip(places, updates, strict=True))):
        lines.insert(place, line)
    depth = (places[-1] + n_updates - 1) / max(1, len(lines) - 1)
    return NeedleExample("".join(lines) + query(key), values[-1], key, depth, VALUES)


def retrieval_text(
    rng: random.Random,
    *,
    n_queries: int,
    n_lines: int | None = None,
    n_tokens: int | None = None,
    count_tokens: CountTokens | None = None,
    max_distractors: int | None = None,
    update_share: float = 0.0,
) -> str:
    """A training document: facts at random places among filler, then `n_queries` answered questions.

    Fewer questions are asked when the document holds fewer facts. `update_share` of the documents state one
    key twice, and its later value is the right one. Lengths and `max_distractors` as in `needle_document`.
    """
    keys = rng.sample(KEYS, len(KEYS))
    asked = [(keys.pop(), rng.choice(VALUES)) for _ in range(n_queries)]
    facts = [fact_line(key, value) for key, value in asked]
    answers = [f"{query(key)} {value}\n" for key, value in asked]
    stale = [fact_line(asked[0][0], rng.choice(VALUES))] if rng.random() < update_share else []
    lines = _haystack(rng, keys, [*facts, *answers, *stale], n_lines, n_tokens, count_tokens, max_distractors)
    for fact in facts:
        lines.insert(rng.randrange(len(lines) + 1), fact)
    if stale:
        lines.insert(rng.randrange(lines.index(facts[0]) + 1), stale[0])
    rng.shuffle(answers)
    return "".join(lines + answers)
