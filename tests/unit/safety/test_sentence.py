import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.safety.sentence import (
    MAX_CHARACTERS,
    adapt_sentence,
    expand_sentence,
    finish_sentence,
    fit,
    format_change,
    format_tokens,
    rolled_back_sentence,
    stop_sentence,
)


def test_the_canonical_sentence() -> None:
    expected = "Ready to expand context 8K -> 16K; expected quality drop 3%; approve?"
    assert expand_sentence(8192, 16384, 0.03) == expected
    assert finish_sentence(0, 0.0) == (
        "Ready to finish: train 0 steps, merge and export; no quality drop expected; approve?"
    )
    assert finish_sentence(1200, -0.04, merge=False) == (
        "Ready to finish: train 1,200 steps, export; expected quality gain 4%; approve?"
    )
    assert adapt_sentence("seedling", 200, 128) == (
        "Ready to adapt seedling for 200 steps at context 128; approve?"
    )
    assert stop_sentence(120, "loss spike", "P1") == "Stopped at step 120: loss spike; roll back to P1?"
    assert rolled_back_sentence("P2") == "Rollback complete; you are now at phase P2"


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (128, "128"),
        (1023, "1023"),
        (1024, "1K"),
        (1536, "1.5K"),
        (1500, "1500"),
        (2048, "2K"),
        (8192, "8K"),
        (131072, "128K"),
        (1048576, "1M"),
        (10**400, "over 9999T"),
    ],
)
def test_tokens(tokens: int, text: str) -> None:
    assert format_tokens(tokens) == text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (0.03, "expected quality drop 3%"),
        (0.005, "no quality drop expected"),
        (-0.005, "no quality drop expected"),
        (0.0051, "expected quality drop 1%"),
        (0.025, "expected quality drop 3%"),
        (-0.04, "expected quality gain 4%"),
        (1e9, "expected quality drop over 999%"),
        (math.inf, "expected quality drop over 999%"),
        (math.nan, "quality change not measured"),
        (None, "quality change not measured"),
    ],
)
def test_change(change: float | None, text: str) -> None:
    assert format_change(change) == text


COUNTS = st.integers(-(10**30), 10**500)
CHANGES = st.one_of(st.none(), st.floats())


@given(COUNTS, COUNTS, CHANGES, st.text(max_size=300), st.text(max_size=300))
def test_never_longer_than_120_and_one_printable_line(
    first: int, second: int, change: float | None, name: str, other: str
) -> None:
    for sentence in (
        expand_sentence(first, second, change),
        adapt_sentence(name, first, second),
        finish_sentence(first, change),
        stop_sentence(first, name, other),
        rolled_back_sentence(name),
    ):
        assert 0 < len(sentence) <= MAX_CHARACTERS
        assert sentence.isprintable()
    assert adapt_sentence(name, first, second).endswith("; approve?")


@given(st.text(), st.integers(3, 200))
def test_fit(text: str, limit: int) -> None:
    assert len(fit(text, limit)) <= limit


def test_escape_sequences_do_not_reach_a_terminal() -> None:
    assert "\x1b" not in adapt_sentence("evil\x1b[2Jname\n", 1, 128)
