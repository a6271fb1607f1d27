"""Changes of the logits before a token is chosen: pure functions of (logits, what was generated so far).

A processor belongs to one request. Those below fit the data profile `emoji_think`: a model that has learned
to think in a few emojis is kept from thinking on and on, from talking after it has stopped, and is helped to
end its turn. Emojis are sequences of tokens, because most vocabularies spell them in several bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from scaler_wizard.inference.requests import Request

Tokens: TypeAlias = tuple[int, ...]
LogitProcessor: TypeAlias = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]
"""(logits [batch, vocabulary], tokens generated so far by row) -> new logits [batch, vocabulary]."""


def process_logits(
    logits_BV: Tensor, requests: Sequence[Request], generated: Callable[[int], Sequence[int]]
) -> Tensor:
    """Each row's logits through its request's processor; the tensor itself where no request has one.

    generated: from a row's place to its tokens so far, without the prompt.
    """
    if all(request.processor is None for request in requests):
        return logits_BV
    changed = logits_BV.clone()
    for at, request in enumerate(requests):
        if request.processor is not None:
            changed[at] = request.processor(logits_BV[at : at + 1], [generated(at)])[0]
    return changed


def think_penalty(
    logits_BV: Tensor,
    generated: Sequence[Sequence[int]],
    *,
    think: Sequence[Tokens],
    stop: Sequence[Tokens],
    strength: float,
    decay: float,
    free: int,
) -> Tensor:
    """Make another thinking emoji unlikely once `free` of them were generated.

    At t tokens generated the penalty is strength * decay^t, 0 < decay <= 1: it is meant for the opening, and
    far into an answer an emoji is the answer's own affair.
    """
    changed = logits_BV.clone()
    for row, tokens in enumerate(generated):
        if occurrences(tokens, think) >= free:
            changed[row, sorted(continuations(tokens, think, stop))] -= strength * decay ** len(tokens)
    return changed


def post_stop_penalty(
    logits_BV: Tensor,
    generated: Sequence[Sequence[int]],
    *,
    stop: Sequence[Tokens],
    end: Collection[int],
    strength: float,
    least: int,
) -> Tensor:
    """After `least` stop emojis every token but those of stop emojis and of the end loses `strength`."""
    changed = logits_BV.clone()
    allowed = sorted({token for sequence in stop for token in sequence} | set(end))
    for row, tokens in enumerate(generated):
        if occurrences(tokens, stop) >= least:
            changed[row] -= strength
            changed[row, allowed] = logits_BV[row, allowed]
    return changed


def end_of_turn_reward(
    logits_BV: Tensor,
    generated: Sequence[Sequence[int]],
    *,
    stop: Sequence[Tokens],
    end: Collection[int],
    strength: float,
    least: int,
) -> Tensor:
    """After `least` stop emojis the end of the turn gains `strength`, and that again for each further one."""
    changed = logits_BV.clone()
    for row, tokens in enumerate(generated):
        n_stops = occurrences(tokens, stop)
        if n_stops >= least:
            changed[row, sorted(end)] += strength * (n_stops - least + 1)
    return changed


def occurrences(tokens: Sequence[int], sequences: Sequence[Tokens]) -> int:
    """How often one of `sequences` stands in `tokens`, counted by where it ends."""
    return sum(
        any(tuple(tokens[max(0, end - len(sequence)) : end]) == sequence for sequence in sequences)
        for end in range(1, len(tokens) + 1)
    )


def continuations(tokens: Sequence[int], sequences: Sequence[Tokens], others: Sequence[Tokens]) -> set[int]:
    """Tokens that begin or go on with one of `sequences`, once that can no longer become one of `others`."""
    found: set[int] = set()
    for sequence in sequences:
        for at in range(len(sequence)):
            begun = tuple(tokens[len(tokens) - at :]) == sequence[:at] if at else True
            shared = any(other[: at + 1] == sequence[: at + 1] for other in others)
            if begun and not shared:
                found.add(sequence[at])
    return found


@dataclass(frozen=True, slots=True)
class EmojiProcessor:
    """The three rules of `emoji_think` together; a `LogitProcessor`."""

    think: tuple[Tokens, ...]
    """Token sequences of the thinking emojis."""
    stop: tuple[Tokens, ...]
    """Token sequences of the stop emojis."""
    end: frozenset[int]
    """Tokens that end a turn."""
    think_strength: float = 5.0
    """Logits at the first token."""
    think_decay: float = 0.98
    """Per token: half after 34."""
    think_free: int = 8
    """Thinking emojis that cost nothing: as many as the profile writes at most."""
    post_stop_strength: float = 10.0
    end_strength: float = 5.0
    least_stops: int = 2
    """Stop emojis that mean it: as many as the profile writes at least."""

    def __call__(self, logits_BV: Tensor, generated: Sequence[Sequence[int]]) -> Tensor:
        """New logits [batch, vocabulary]."""
        after = think_penalty(
            logits_BV, generated, think=self.think, stop=self.stop, strength=self.think_strength,
            decay=self.think_decay, free=self.think_free,
        )  # fmt: skip
        after = post_stop_penalty(
            after, generated, stop=self.stop, end=self.end, strength=self.post_stop_strength,
            least=self.least_stops,
        )  # fmt: skip
        return end_of_turn_reward(
            after, generated, stop=self.stop, end=self.end, strength=self.end_strength, least=self.least_stops
        )


def token_sequences(texts: Sequence[str], encode: Callable[[str], Sequence[int]]) -> tuple[Tokens, ...]:
    """How a tokenizer spells each text by itself.

    encode: text -> token ids, without special tokens. Texts with an unknown token give none: the same token
    would stand for every other unknown character too, so give an `encode` that leaves those out.
    """
    return tuple(sequence for text in texts if (sequence := tuple(encode(text))))
