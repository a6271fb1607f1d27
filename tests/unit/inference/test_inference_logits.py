"""Logit processors: pure, exact by hand, and part of a request in both ways to generate."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from scaler_wizard.inference.generate import generate
from scaler_wizard.inference.logits import (
    EmojiProcessor,
    continuations,
    end_of_turn_reward,
    occurrences,
    post_stop_penalty,
    process_logits,
    think_penalty,
    token_sequences,
)
from scaler_wizard.inference.requests import Request
from scaler_wizard.models.rope import RopeSetting, apply_rope
from scaler_wizard.models.tiny import tiny_model

# Emojis of two tokens, of which the first begins thinking and stop emojis alike; one stop emoji is one token.
THINK = ((1, 2), (1, 3))
STOP = ((1, 4), (5,))
END = frozenset({7})


def test_sequences_are_counted_and_continued() -> None:
    assert occurrences([1, 2, 1, 3, 0, 1, 4], THINK) == 2
    assert occurrences([1, 4, 5, 5], STOP) == 3
    # The shared first token may become a stop emoji, so it is left alone; what follows it is not.
    assert continuations([], THINK, STOP) == set()
    assert continuations([1], THINK, STOP) == {2, 3}
    assert continuations([], ((9, 2),), STOP) == {9}
    assert token_sequences(["a", "", "b"], lambda text: [ord(c) for c in text]) == ((97,), (98,))


def test_think_penalty_starts_after_the_free_ones_and_decays() -> None:
    logits = torch.zeros(3, 8)
    generated = [[1], [1, 2, 1], [1, 2, 0, 0, 0, 1]]
    after = think_penalty(logits, generated, think=THINK, stop=STOP, strength=8.0, decay=0.5, free=1)
    assert after[0].tolist() == [0.0] * 8
    assert after[1].tolist() == [0, 0, -1, -1, 0, 0, 0, 0]
    assert after[2].tolist() == [0, 0, -0.125, -0.125, 0, 0, 0, 0]
    assert not logits.any()


def test_after_stopping_only_stops_and_the_end_are_left() -> None:
    logits = torch.arange(8.0).repeat(2, 1)
    after = post_stop_penalty(logits, [[5], [5, 1, 4]], stop=STOP, end=END, strength=100.0, least=2)
    assert after[0].tolist() == logits[0].tolist()
    assert after[1].tolist() == [-100, 1, -98, -97, 4, 5, -94, 7]


def test_reward_of_the_end_grows_with_each_stop() -> None:
    logits = torch.zeros(3, 8)
    after = end_of_turn_reward(logits, [[5], [5, 5], [5, 5, 5]], stop=STOP, end=END, strength=3.0, least=2)
    assert after[:, 7].tolist() == [0, 3, 6]
    assert not after[:, :7].any()


def test_together_they_leave_a_plain_answer_alone() -> None:
    processor = EmojiProcessor(THINK, STOP, END)
    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(processor(logits, [[], [0, 6, 0]]), logits)
    assert not torch.equal(processor(logits, [[5, 5], [0]]), logits)


def test_requests_without_a_processor_get_the_same_tensor() -> None:
    logits = torch.zeros(2, 8)

    def unasked(row: int) -> Sequence[int]:
        raise AssertionError(row)

    assert process_logits(logits, [Request((1,), 1), Request((2,), 1)], unasked) is logits


class Favour:
    """Wants the token after the last one generated, and remembers what it was shown."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.seen: list[list[int]] = []

    def __call__(self, logits_BV: Tensor, generated: Sequence[Sequence[int]]) -> Tensor:
        self.seen.append(list(generated[0]))
        changed = logits_BV.clone()
        changed[0, (generated[0][-1] + 1) if generated[0] else self.first] += 1000.0
        return changed


@pytest.mark.parametrize("whole_rows", [False, True])
def test_generation_asks_each_request_for_its_own(whole_rows: bool) -> None:
    model = tiny_model("llama")
    if whole_rows:
        apply_rope(model, RopeSetting("dynamic", 32, 128))
    first, second = Favour(20), Favour(40)
    requests = [
        Request((1, 2, 3), 4, processor=first),
        Request((1, 2, 3), 4),
        Request((1, 2, 3), 3, processor=second),
    ]
    found = [result.tokens for result in generate(model, requests)]
    assert found[0] == (20, 21, 22, 23)
    assert found[2] == (40, 41, 42)
    assert found[1] == generate(model, [Request((1, 2, 3), 4)])[0].tokens
    assert first.seen == [[], [20], [20, 21], [20, 21, 22]]
