"""Needles in documents of an exact token length, for any tokenizer: building the prompts and scoring them.

Two styles. "generated" is the embedded model's world (data/generators/needles.py). "documents" hides a
sentence in held-out text:

    The special word for river is garden.
    ... The special word for river is

Keys and values are common words that are one token in the given tokenizer; where it has too few of those,
words of several tokens are used and every token must be the most likely one, teacher-forced.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import nn

from scaler_wizard.data.generators.needles import NeedleExample, fact_line, query
from scaler_wizard.data.generators.words import VALUES, single_token_words
from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.errors import EmptyDataError, IncompatibleModelError
from scaler_wizard.evals.common_words import COMMON_WORDS
from scaler_wizard.evals.documents import last_window, prefix_ids, text_ids, token_stream
from scaler_wizard.evals.settings import ProbeSettings, Scoring
from scaler_wizard.evals.tokenizing import Tokenizer
from scaler_wizard.inference.scoring import score_positions

MIN_WORDS = 16
MAX_WORDS = 64
STATEMENT = "\nThe special word for {} is"


@dataclass(frozen=True, slots=True)
class RetrievalItem:
    """One prompt whose answer was stated in it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    depth: float
    distance: int
    """Tokens from the start of the (last) right statement to the end of the prompt."""
    wrong: tuple[tuple[int, ...], ...] = ()
    """Answers worth counting apart: other keys' values, or earlier values."""

    def truncated(self, window: int, prefix: Sequence[int]) -> RetrievalItem:
        """The prompt cut to its last tokens, so that prompt and answer fit `window`; the question stays."""
        return replace(self, prompt=tuple(last_window(self.prompt, window - len(self.answer), prefix)))


@dataclass(frozen=True, slots=True)
class Statements:
    """Words with their token ids for one tokenizer, in the "documents" style."""

    keys: tuple[tuple[int, ...], ...]
    """Token ids of "\\nThe special word for KEY is"."""
    values: tuple[tuple[int, ...], ...]
    """Token ids of " VALUE" after it."""
    stop: tuple[int, ...]

    @property
    def single_token(self) -> bool:
        """Whether every value is one token."""
        return all(len(value) == 1 for value in self.values)


def continuation_ids(tokenizer: Tokenizer, lead: str, word: str) -> tuple[int, ...] | None:
    """Token ids that " word" adds after `lead`; None where the tokenizer merges across the border."""
    start, full = text_ids(tokenizer, lead), text_ids(tokenizer, f"{lead} {word}")
    return tuple(full[len(start) :]) if full[: len(start)] == start and len(full) > len(start) else None


def uses_generated_world(tokenizer: Tokenizer, settings: ProbeSettings) -> bool:
    """Whether needles come from the generated world; "auto" asks whether its words are single tokens."""
    if settings.style != "auto":
        return settings.style == "generated"
    return all(len(continuation_ids(tokenizer, ":", word) or ()) == 1 for word in single_token_words())


def choose_statements(tokenizer: Tokenizer) -> Statements:
    """Split the common words into keys and values, one-token values where the tokenizer has enough."""
    lead = STATEMENT.format(COMMON_WORDS[0])
    values = [continuation_ids(tokenizer, lead, word) for word in COMMON_WORDS]
    usable = [(word, ids) for word, ids in zip(COMMON_WORDS, values, strict=True) if ids]
    single = [(word, ids) for word, ids in usable if len(ids) == 1]
    chosen = (single if len(single) >= 2 * MIN_WORDS else usable)[: 2 * MAX_WORDS]
    if len(chosen) < 2 * MIN_WORDS:
        raise EmptyDataError(
            f"the tokenizer parts only {len(chosen)} common words from the text before them",
            f"at least {2 * MIN_WORDS}",
            "use another tokenizer; this one merges across spaces",
        )
    keys = [tuple(text_ids(tokenizer, STATEMENT.format(word))) for word, _ in chosen[::2]]
    return Statements(tuple(keys), tuple(ids for _, ids in chosen[1::2]), tuple(text_ids(tokenizer, ".")))


class TextNeedles:
    """Makes prompts of the "documents" style, each exactly as long as asked."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], settings: ProbeSettings) -> None:
        self.statements = choose_statements(tokenizer)
        self._prefix = prefix_ids(tokenizer)
        self._newline = tuple(text_ids(tokenizer, "\n"))
        # Ten times the length is enough for prompts to differ; more would only cost tokenising.
        self._stream = token_stream(tokenizer, texts, 10 * settings.length)
        self._length = settings.length

    def item(
        self, rng: random.Random, key: int, value: int, stated: Sequence[tuple[int, int, float]], depth: float
    ) -> RetrievalItem:
        """A prompt asking `key`, whose last statement is answered by `value`.

        stated: (key, value, depth) of every statement, in the order they shall stand at equal depth.

        Raises IncompatibleModelError when the statements alone are longer than the length.
        """
        keys, values, stop = self.statements.keys, self.statements.values, self.statements.stop
        lines = [(*keys[k], *values[v], *stop, *self._newline) for k, v, _ in stated]
        question = keys[key]
        answer = values[value]
        room = self._length - len(self._prefix) - len(question) - len(answer) - sum(map(len, lines))
        if room < 0:
            raise too_short(self._length, self._length - room)
        start = rng.randrange(len(self._stream))
        filler = [self._stream[(start + i) % len(self._stream)] for i in range(room)]
        prompt: list[int] = [*self._prefix]
        used, distance = 0, 0
        for line, (k, v, where) in sorted(zip(lines, stated, strict=True), key=lambda pair: pair[1][2]):
            place = round(where * room)
            prompt += filler[used:place]
            used = max(used, place)
            if (k, v) == (key, value):
                distance = len(prompt)
            prompt += line
        prompt += filler[used:]
        prompt += question
        others = tuple(values[v] for _, v, _ in stated if v != value)
        return RetrievalItem(tuple(prompt), answer, depth, len(prompt) - distance, others)


def token_counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    """Token length of a line, remembered: generated documents repeat their lines."""
    return lru_cache(maxsize=65536)(lambda line: len(text_ids(tokenizer, line)))


def generated_item(
    tokenizer: Tokenizer,
    build: Callable[[int], NeedleExample],
    length: int,
    stale: Callable[[NeedleExample], Sequence[str]] = lambda example: (),
) -> RetrievalItem:
    """A prompt of the generated world within `length` tokens.

    build: most tokens -> document. Called again with less room where the tokenizer needs more tokens for
    the whole than for the sum of its lines.

    Raises IncompatibleModelError when the shortest document is longer than `length`.
    """
    prefix = prefix_ids(tokenizer)
    room = length - len(prefix)
    while True:
        example = build(room)
        ids = text_ids(tokenizer, example.prompt)
        answer = continuation_ids(tokenizer, query(example.key), example.answer)
        assert answer is not None, "the generated world needs a tokenizer that keeps its words apart"
        excess = len(prefix) + len(ids) + len(answer) - length
        if excess <= 0:
            break
        if room <= excess:
            raise too_short(length, length + excess)
        room -= excess
    before = example.prompt[: example.prompt.rindex(fact_line(example.key, example.answer))]
    distance = len(ids) - len(text_ids(tokenizer, before))
    wrong = [continuation_ids(tokenizer, query(example.key), word) for word in stale(example)]
    return RetrievalItem(
        (*prefix, *ids), answer, example.depth, distance, tuple(word for word in wrong if word is not None)
    )


def too_short(length: int, needed: int) -> IncompatibleModelError:
    """The error for a context in which a retrieval question of `needed` tokens or more does not fit."""
    return IncompatibleModelError(
        f"a context of {length} tokens cannot hold a retrieval question of {needed} tokens",
        f"a context of at least {needed} tokens with this tokenizer",
        "use a model with a longer context",
    )


def generated_values(tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Token ids of every value of the generated world."""
    found = [continuation_ids(tokenizer, query("acorn"), word) for word in VALUES]
    return [ids for ids in found if ids is not None]


def predict_answers(
    model: nn.Module,
    items: Sequence[RetrievalItem],
    values: Sequence[tuple[int, ...]],
    scoring: Scoring,
    on_progress: OnProgress = no_progress,
) -> list[tuple[int, ...]]:
    """What the model puts in each answer's place, teacher-forced; right when it equals the answer.

    "choices" restricts to the values' tokens where each is one token; else the whole vocabulary counts.
    """
    single = all(len(value) == 1 for value in values)
    candidates = [value[0] for value in values] if scoring == "choices" and single else None
    sequences = [(*item.prompt, *item.answer) for item in items]
    positions = [range(len(item.prompt), len(item.prompt) + len(item.answer)) for item in items]
    scores = score_positions(model, sequences, positions, candidates=candidates, on_progress=on_progress)
    return [score.predicted for score in scores]


def predict_whole_and_truncated(
    model: nn.Module,
    tokenizer: Tokenizer,
    items: Sequence[RetrievalItem],
    values: Sequence[tuple[int, ...]],
    settings: ProbeSettings,
    on_progress: OnProgress = no_progress,
) -> tuple[list[tuple[int, ...]], list[bool]]:
    """`predict_answers`, and which items are right when only the last `base_length` tokens are shown.

    The second is what a person gets without extending anything. Where the length is the base length both
    are the same prompts, asked once.
    """
    longer = settings.length > settings.base_length
    total = len(items) * (2 if longer else 1)
    answers = predict_answers(
        model, items, values, settings.scoring, lambda done, _: on_progress(done, total)
    )
    if not longer:
        return answers, right_answers(answers, items)
    prefix = prefix_ids(tokenizer)
    cut = [item.truncated(settings.base_length, prefix) for item in items]
    short = predict_answers(
        model, cut, values, settings.scoring, lambda done, _: on_progress(len(items) + done, total)
    )
    return answers, right_answers(short, items)


def right_answers(answers: Sequence[tuple[int, ...]], items: Sequence[RetrievalItem]) -> list[bool]:
    """Which predictions equal their item's answer."""
    return [answer == item.answer for answer, item in zip(answers, items, strict=True)]


def wrong_answers(answers: Sequence[tuple[int, ...]], items: Sequence[RetrievalItem]) -> list[bool]:
    """Which predictions are one of their item's wrong answers worth counting."""
    return [answer in item.wrong for answer, item in zip(answers, items, strict=True)]
