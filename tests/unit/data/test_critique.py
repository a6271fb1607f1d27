"""What a critic's replies amount to; uncertain is not a vote."""

from __future__ import annotations

import pytest

from scaler_wizard.data.critique import Opinion, count_critic, decide_options, decide_redo, joined, pieces_of


@pytest.mark.parametrize(
    ("first", "second", "flag", "reason"),
    [
        (2.0, 1.5, "clear", ""),
        (-2.0, -1.5, "violates", ""),
        (5.0, -5.0, "uncertain", "the orders disagree"),  # it says A whatever A is
        (-5.0, 5.0, "uncertain", "the orders disagree"),
        (0.5, 9.0, "uncertain", "below the margin"),
        (-0.5, -9.0, "uncertain", "below the margin"),
        (0.0, 0.0, "uncertain", "below the margin"),
    ],
)
def test_both_orders_must_say_it_with_a_margin(first: float, second: float, flag: str, reason: str) -> None:
    found = decide_options(first, second, margin=1.0)
    assert (found.flag, found.reason) == (flag, reason)
    assert found.scores == {"good_first": first, "good_second": second}


def test_without_a_margin_a_tie_is_still_no_vote() -> None:
    assert decide_options(0.0, 0.0, margin=0.0).flag == "uncertain"


@pytest.mark.parametrize(
    ("revisions", "flag", "revised"),
    [
        (["a q c", " a q c \n"], "clear", "a q c"),
        (["a x c", "a x c"], "violates", "a x c"),
        (["a x c", "a q c"], "uncertain", None),
        (["a x c", ""], "uncertain", None),
        (["a x", "a x"], "uncertain", None),  # a word was lost
    ],
)
def test_revisions_must_agree_and_keep_the_length(
    revisions: list[str], flag: str, revised: str | None
) -> None:
    found = decide_redo("a q c", revisions, most_length_change=0.1)
    assert (found.flag, found.revised) == (flag, revised)


@pytest.mark.parametrize(
    ("revisions", "flag"),
    [
        (["x", "x", "q", ""], "violates"),
        (["q", "q", "x", "y"], "clear"),
        (["x", "x", "q", "q"], "uncertain"),  # two against two
        (["x", "y", "z", "q"], "uncertain"),
    ],
)
def test_some_votes_are_enough_where_no_other_text_has_as_many(revisions: list[str], flag: str) -> None:
    assert decide_redo("q", revisions, agree=2).flag == flag


def test_pieces_of_an_answer_are_one_opinion() -> None:
    assert pieces_of("a b c", 2) == ["a b", "c"]
    assert pieces_of("a  b", None) == ["a  b"]
    assert pieces_of("", 1) == [""]
    kept, changed, unsure = (
        Opinion("clear", revised="a"),
        Opinion("violates", revised="x"),
        Opinion("uncertain"),
    )
    assert joined([kept, kept]) == Opinion("clear", revised="a a")
    assert joined([kept, changed]) == Opinion("violates", revised="a x")
    assert joined([changed, unsure]).flag == "uncertain"


def test_any_length_where_none_is_set() -> None:
    assert decide_redo("a q c", ["a"]).flag == "violates"


def test_the_critic_is_counted_against_the_checks() -> None:
    found = count_critic(["violates", "violates", "clear", "uncertain"], [True, False, False, True])
    assert found.as_dict() == {
        "n": 4, "flagged": 2, "cleared": 1, "uncertain": 1, "precision_flagged": 0.5,
        "precision_cleared": 1.0,
    }  # fmt: skip
    assert count_critic([], []).as_dict()["precision_flagged"] is None
