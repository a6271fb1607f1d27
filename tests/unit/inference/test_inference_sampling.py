from __future__ import annotations

import random

import pytest
import torch

from scaler_wizard.inference.sampling import choose_tokens


def test_greedy_rows_and_sampled_rows_stand_side_by_side() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0], [9.0, 0.0, 0.0]])
    assert choose_tokens(logits, [0.0, 1.0, 0.0], [0.9, 0.999, 0.9]) == [1, 2, 0]


def test_frequencies_follow_the_softmax_at_the_temperature() -> None:
    rng = random.Random(0)
    logits = torch.tensor([2.0, 0.0, -1.0, float("-inf")])
    n = 20_000
    found = choose_tokens(logits.expand(n, 4), [2.0] * n, [rng.random() for _ in range(n)])
    expected = (logits / 2).softmax(0)
    for token in range(4):
        assert found.count(token) / n == pytest.approx(float(expected[token]), abs=0.01)
    assert 3 not in found


def test_the_ends_of_the_draw_stay_in_the_vocabulary() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]]).expand(2, 4)
    assert choose_tokens(logits, [1.0, 1.0], [0.0, 1 - 2**-53]) == [1, 2]
