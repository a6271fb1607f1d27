"""Steps: every row once an epoch, packed without loss, a pure function of the step number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler_wizard.data.batches import IGNORED, Batches, collate, pack
from scaler_wizard.data.token_rows import TokenRow, TokenRows
from scaler_wizard.errors import EmptyDataError


def rows_of(lengths: list[int], first: int = 0) -> TokenRows:
    """Rows whose ids tell them apart: row n is n * 1000, n * 1000 + 1, ..."""
    return TokenRows.of(
        TokenRow(first + n, np.arange(length, dtype=np.int32) + (first + n) * 1000, np.ones(length, bool))
        for n, length in enumerate(lengths)
    )


def numbers(batches: Batches, steps: range) -> list[int]:
    return [row.number for step in steps for row in batches.rows_of(step)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 200))
def test_packing_fits_everything_once(lengths: list[int], capacity: int) -> None:
    bins = pack(lengths, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= capacity for members in bins)
    assert len(bins) <= 11 / 9 * -(-sum(lengths) // capacity) * 2 + 1


@settings(deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=40), st.integers(1, 300), st.integers(0, 9))
def test_steps_cover_epochs_exactly_and_are_never_empty(
    lengths: list[int], batch_tokens: int, seed: int
) -> None:
    batches = Batches(
        rows_of(lengths), context=40, batch_tokens=batch_tokens, micro_batch_tokens=64, seed=seed
    )
    n_steps = 4 * len(batches)
    taken = numbers(batches, range(n_steps))
    epochs, rest = divmod(len(taken), len(lengths))
    for epoch in range(epochs):
        assert sorted(taken[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))
    assert len(set(taken[len(taken) - rest :])) == rest
    for step in range(n_steps):
        n_tokens = batches.step(step).n_tokens
        assert n_tokens > 0
        assert abs(n_tokens - batches.batch_tokens) <= max(lengths)


def test_step_is_a_pure_function_of_its_number_and_epochs_reshuffle() -> None:
    rows = rows_of([7] * 40)
    options = {"context": 64, "batch_tokens": 70, "micro_batch_tokens": 35}
    batches = Batches(rows, seed=1, **options)  # type: ignore[arg-type]
    fresh = Batches(rows, seed=1, **options)  # type: ignore[arg-type]
    for step in (9, 2, 7):
        left, right = batches.step(step), fresh.step(step)
        assert [micro.input_ids.tolist() for micro in left.micro_batches] == [
            micro.input_ids.tolist() for micro in right.micro_batches
        ]
    assert len(batches) == 4
    assert numbers(batches, range(4)) != numbers(batches, range(4, 8))
    assert numbers(batches, range(4)) != numbers(Batches(rows, seed=2, **options), range(4))  # type: ignore[arg-type]
    assert numbers(batches, range(4))[:6] == [20, 25, 3, 24, 37, 29], (
        "frozen: a resumed run sees the same rows"
    )


def test_smaller_micro_batches_keep_the_step() -> None:
    batches = Batches(
        rows_of([5, 9, 30, 12] * 5), context=40, batch_tokens=120, micro_batch_tokens=120, seed=0
    )
    smaller = batches.with_micro_batch_tokens(1)
    assert smaller.micro_batch_tokens == 30
    assert numbers(batches, range(9)) == numbers(smaller, range(9))
    assert batches.step(3).n_labels == smaller.step(3).n_labels
    assert len(smaller.step(3).micro_batches) > len(batches.step(3).micro_batches)
    assert all(micro.n_tokens <= 30 for micro in smaller.step(3).micro_batches)


def test_micro_batch_layout() -> None:
    first = TokenRow(0, np.array([5, 6, 7], np.int32), np.array([True, False, True]))
    second = TokenRow(1, np.array([8, 9], np.int32), np.array([True, True]))
    micro = collate([first, second])
    assert micro.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert micro.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert micro.labels.tolist() == [[IGNORED, IGNORED, 7, IGNORED, 9]], "no label where nothing comes before"
    assert micro.cu_seqlens.tolist() == [0, 3, 5]
    assert micro.cu_seqlens.dtype == torch.int32
    assert (micro.segment_lengths, micro.n_labels, micro.n_tokens) == ((3, 2), 2, 5)
    assert first.trained.tolist() == [True, False, True], "the rows are untouched"


def test_replay_takes_its_share_of_tokens() -> None:
    batches = Batches(
        rows_of([20] * 50), context=64, batch_tokens=400, micro_batch_tokens=128, seed=0,
        text_rows=rows_of([30] * 20, first=100), replay_fraction=0.25,
    )  # fmt: skip
    text = main = 0
    for step in range(40):
        for row in batches.rows_of(step):
            text, main = text + len(row.ids) * (row.number >= 100), main + len(row.ids) * (row.number < 100)
    assert text / (text + main) == pytest.approx(0.25, abs=0.005)
    assert batches.batch_tokens == 400


def test_rows_without_labels_are_left_out() -> None:
    silent = TokenRow(7, np.arange(5, dtype=np.int32), np.array([True, False, False, False, False]))
    speaking = TokenRow(8, np.arange(5, dtype=np.int32), np.ones(5, bool))
    options = {"context": 8, "batch_tokens": 10, "micro_batch_tokens": 10, "seed": 0}
    batches = Batches(TokenRows.of([silent, speaking]), **options)  # type: ignore[arg-type]
    assert set(numbers(batches, range(3))) == {8}
    with pytest.raises(EmptyDataError, match="none of 1 rows"):
        Batches(TokenRows.of([silent]), **options)  # type: ignore[arg-type]


def test_unpacked_batches_have_one_row_each() -> None:
    batches = Batches(
        rows_of([5, 9] * 5), context=16, batch_tokens=40, micro_batch_tokens=40, seed=0, packed=False
    )
    assert all(len(micro.segment_lengths) == 1 for micro in batches.step(0).micro_batches)
