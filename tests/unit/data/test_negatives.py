"""Negatives of known kinds: each is made, none is the good answer, and their shares are even."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from scaler_wizard.data.negatives import KINDS, NegativeKind, choose_negatives, negative

GOODS = ["a b c", "d e", "f g h i"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_differs_from_the_good_answer(kind: NegativeKind) -> None:
    made = [negative(random.Random(seed), kind, "a b c", GOODS) for seed in range(20)]
    assert any(made)
    assert "a b c" not in made


def test_what_cannot_be_made_is_none() -> None:
    assert negative(random.Random(0), "incorrect", "a", GOODS) is None
    assert negative(random.Random(0), "off topic", "a", ["a"]) is None


def test_kinds_come_in_even_shares_and_repeat_with_the_seed() -> None:
    found = choose_negatives(random.Random(3), GOODS, 100)
    assert found == choose_negatives(random.Random(3), GOODS, 100)
    counts = Counter(kind for _, kind, _ in found)
    assert set(counts) == set(KINDS)
    assert max(counts.values()) <= 20
    assert choose_negatives(random.Random(3), ["a"], 10) == []
