"""The held-out split: deterministic, by content, never empty."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.data.rows import Row
from scaler_wizard.data.split import split_rows
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
