"""What a critic's replies amount to; uncertain is not a vote."""

from __future__ import annotations

import pytest

from scaler_wizard.data.critique import count_critic, decide_options, decide_redo


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


def test_any_length_where_none_is_set() -> None:
    assert decide_redo("a q c", ["a"]).flag == "violates"


def test_the_critic_is_counted_against_the_checks() -> None:
    found = count_critic(["violates", "violates", "clear", "uncertain"], [True, False, False, True])
    assert found.as_dict() == {
        "n": 4, "flagged": 2, "cleared": 1, "uncertain": 1, "precision_flagged": 0.5,
        "precision_cleared": 1.0,
    }  # fmt: skip
    assert count_critic([], []).as_dict()["precision_flagged"] is None
