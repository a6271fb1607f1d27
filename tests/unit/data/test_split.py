"""The held-out split: deterministic, by content, never empty."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.data.rows import Row
from scaler_wizard.data.split import split_rows, split_share
from scaler_wizard.errors import EmptyDataError


@given(st.lists(st.integers(0, 30), min_size=2), st.floats(0.01, 0.89), st.integers(0, 5))
def test_partition_without_leaks(contents: list[int], fraction: float, seed: int) -> None:
    rows = [Row(number, {"text": str(content)}) for number, content in enumerate(contents)]
    if len(set(contents)) < 2:
        with pytest.raises(EmptyDataError):
            split_rows(rows, fraction, seed)
        return
    split = split_rows(rows, fraction, seed)
    train, held_out = ({row.value["text"] for row in side} for side in (split.train, split.held_out))
    assert train
    assert held_out
    assert not train & held_out
    assert sorted(row.number for row in split.train + split.held_out) == list(range(len(rows)))


def test_share_and_stability() -> None:
    rows = [Row(number, {"text": f"row {number}"}) for number in range(4000)]
    split = split_rows(rows, 0.1, seed=3)
    assert 320 < len(split.held_out) < 480, "0.1 of 4,000 within 4 standard deviations"
    half = split_rows(rows[:2000], 0.1, seed=3)
    assert half.held_out == tuple(row for row in split.held_out if row.number < 2000), "growth moves no row"
    assert split_rows(rows, 0.1, seed=4).held_out != split.held_out


def test_a_share_is_held_out_to_within_one_row() -> None:
    rows = [Row(number, {"text": f"piece {number}"}) for number in range(1, 61)]
    for seed in range(5):
        split = split_share(rows, 0.1, seed)
        assert len(split.held_out) == 6
        assert sorted(row.number for row in (*split.train, *split.held_out)) == list(range(1, 61))
    twins = [Row(number, {"text": "same" if number < 3 else f"other {number}"}) for number in range(1, 9)]
    sides = split_share(twins, 0.25)
    assert len({row.number in (1, 2) for row in sides.held_out if row.number in (1, 2)}) <= 1
    assert {1, 2} <= {r.number for r in sides.train} or {1, 2} <= {r.number for r in sides.held_out}
    with pytest.raises(EmptyDataError):
        split_share(twins[:2], 0.5)
