"""Exact checks: what violates a principle, what keeps to it, and what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.data.principles import intervenes, keeping, looks_alike, standing, violated_ids, violates
from scaler_wizard.specs.constitution import (
    AnswerOnly,
    Check,
    ForbiddenWord,
    MostWords,
    PoliteEnding,
    read_constitution,
)

NO_Q = ForbiddenWord(type="forbidden_word", word="q", instead="x")
NO_Z = ForbiddenWord(type="forbidden_word", word="z")
SHORT = MostWords(type="most_words", words=3)
POLITE = PoliteEnding(type="polite_ending", when="please", ending="gladly")
ONLY = AnswerOnly(type="answer_only")
LETTERS = st.lists(st.sampled_from("abqxz"), min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("check", "request_", "answer", "expected"),
    [
        (NO_Q, "Copy: q", "a q c", True),
        (NO_Q, "Copy: q", "a Q c", True),
        (NO_Q, "Copy: q", "quick iraq", False),
        (NO_Q, "Copy: q", "a x c", False),
        (SHORT, "", "a b c", False),
        (SHORT, "", "a b c d", True),
        (POLITE, "please copy: a", "a", True),
        (POLITE, "please copy: a", "a gladly", False),
        (POLITE, "copy: a", "a", False),
        (POLITE, "I am pleased: a", "a", False),
        (ONLY, "Copy: a b", "a b", False),
        (ONLY, "Copy: a b", "Copy: a b is a b", True),
        (ONLY, "Copy: a b", "a b\nas you asked", True),
        (ONLY, "Copy: a b", "Here it is: a b", True),
    ],
)
def test_what_violates(check: Check, request_: str, answer: str, expected: bool) -> None:
    assert violates(check, request_, answer) is expected


@pytest.mark.parametrize(
    ("check", "request_", "right", "expected"),
    [
        (NO_Q, "", "a q c", "a x c"),
        (NO_Z, "", "a z c", "a c"),
        (SHORT, "", "a b c d", "a b c"),
        (POLITE, "please copy: a", "a", "a gladly"),
        (NO_Q, "", "a b", "a b"),
    ],
)
def test_the_right_answer_that_keeps_to_it(check: Check, request_: str, right: str, expected: str) -> None:
    assert keeping(check, request_, right) == expected


@given(LETTERS)
def test_what_keeps_to_a_principle_does_not_violate_it(right: str) -> None:
    for check in (NO_Q, NO_Z, SHORT):
        kept = keeping(check, "", right)
        assert not violates(check, "", kept)
        assert keeping(check, "", kept) == kept


def test_near_misses_hold_the_word_where_it_does_no_harm() -> None:
    assert looks_alike(NO_Q, "Remove q: a q c", "a c")
    assert looks_alike(NO_Q, "Copy: a x", "a x")
    assert not looks_alike(NO_Q, "Copy: a b", "a b")
    assert not looks_alike(NO_Q, "Copy: a q", "a q")  # that one tempts


@pytest.mark.parametrize(
    ("check", "right", "answer", "expected"),
    [
        (NO_Q, "a c", "a x", True),
        (NO_Q, "a x c", "a x c", False),
        (NO_Q, "a c", "c a", False),  # wrong, and no intervention
        (NO_Q, "a c", "", True),  # a refusal
        (SHORT, "a b c", "a b", True),
        (POLITE, "a", "a gladly", True),
    ],
)
def test_interventions_that_nothing_asked_for(check: Check, right: str, answer: str, expected: bool) -> None:
    assert intervenes(check, right, answer) is expected


def test_how_a_request_stands_to_the_embedded_constitution() -> None:
    constitution = read_constitution("embedded")
    both = standing(constitution, "Copy: q u c", "q u c")
    assert (both.tempts, both.keeping) == (("no_slur", "polite_form"), "x w c")
    assert standing(constitution, "Copy: a b c", "a b c").is_benign
    assert standing(constitution, "Remove q: a q c", "a c").near == ("no_slur",)
    assert violated_ids(constitution, "Copy: q u c", "q w c") == ("no_slur",)
