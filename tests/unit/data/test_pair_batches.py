"""Pairs are never torn, and a step is a function of its number alone."""

from __future__ import annotations

import numpy as np
import pytest

from scaler_wizard.data.pair_batches import PairBatches, PairMicroBatch, TokenPair
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.errors import EmptyDataError


def row(number: int, length: int, *, trained: bool = True) -> TokenRow:
    marks = np.zeros(length, dtype=bool)
    marks[length // 2 :] = trained
    return TokenRow(number, np.full(length, number, dtype=np.int32), marks)


def pairs(count: int) -> list[TokenPair]:
    return [TokenPair(row(2 * n, 6 + n % 5), row(2 * n + 1, 7 + n % 3)) for n in range(count)]


def batches(count: int = 10, anchors: int = 4, **changes: int | float) -> PairBatches:
    settings = {"pairs_per_step": 3, "anchors_per_pair": 1.0, "micro_batch_tokens": 40, "seed": 5, **changes}
    beside = [row(1000 + n, 5) for n in range(anchors)]
    return PairBatches(pairs(count), beside, **settings)  # type: ignore[arg-type]


def test_a_micro_batch_holds_whole_pairs_first_and_anchors_after() -> None:
    made = batches()
    for index in range(8):
        step = made.step(index)
        assert step.n_labels == 3  # pairs, not tokens
        for micro in step.micro_batches:
            assert isinstance(micro, PairMicroBatch)
            assert micro.n_tokens <= made.micro_batch_tokens
            starts = np.cumsum([0, *micro.segment_lengths[:-1]])
            owners = [int(micro.input_ids[0, start]) for start in starts]
            split = 2 * micro.n_pairs
            expected = [number for pair in micro.numbers for number in (2 * pair, 2 * pair + 1)]
            assert owners[:split] == expected
            assert all(owner >= 1000 for owner in owners[split:])


def test_every_pair_once_an_epoch_in_an_order_of_its_own() -> None:
    made = batches(count=10)
    line = [number for index in range(20) for number in made.numbers_of(index)]
    epochs = [line[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert made.steps_for(1.0) == 4


def test_smaller_passes_hold_the_same_rows() -> None:
    made = batches()
    smaller = made.with_micro_batch_tokens(1)
    assert smaller.micro_batch_tokens == made.longest
    for index in range(3):
        assert len(smaller.step(index).micro_batches) > len(made.step(index).micro_batches)
        assert [r.number for r in smaller.rows_of(index)] == [r.number for r in made.rows_of(index)]


def test_without_anchors_there_are_only_pairs() -> None:
    step = batches(anchors=0).step(0)
    assert all(len(micro.segment_lengths) == 2 * micro.n_pairs for micro in step.micro_batches)


def test_no_pair_or_an_answer_of_nothing_is_refused() -> None:
    with pytest.raises(EmptyDataError, match="preference pairs"):
        batches(count=0)
    with pytest.raises(EmptyDataError, match="an answer of no token"):
        PairBatches(
            [TokenPair(row(0, 6), row(1, 6, trained=False))], [], pairs_per_step=1, anchors_per_pair=0,
            micro_batch_tokens=64, seed=0,
        )  # fmt: skip
