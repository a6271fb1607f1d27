"""A pair is valid only where the critic flags the one, clears the other, and they differ."""

from __future__ import annotations

import pytest

from scaler_wizard.data.pairs import Flag, PairReason, count_pairs, judge_pair


@pytest.mark.parametrize(
    ("chosen", "rejected", "chosen_flag", "rejected_flag", "reason"),
    [
        ("a b", "no!", "clear", "violates", "valid"),
        ("a  b", "a b ", "clear", "violates", "identical"),
        (" ", "no!", "clear", "violates", "empty"),
        ("a b", "", "clear", "violates", "empty"),
        ("a b", "no!", "clear", "clear", "rejected not flagged"),
        ("a b", "no!", "violates", "violates", "chosen not cleared"),
        ("a b", "no!", "uncertain", "violates", "uncertain"),
        ("a b", "no!", "clear", "uncertain", "uncertain"),
    ],
)
def test_valid_pairs(
    chosen: str, rejected: str, chosen_flag: Flag, rejected_flag: Flag, reason: PairReason
) -> None:
    verdict = judge_pair(chosen, rejected, chosen_flag=chosen_flag, rejected_flag=rejected_flag)
    assert (verdict.reason, verdict.valid) == (reason, reason == "valid")


def test_the_revision_does_not_always_win() -> None:
    """A generator that repeats its answer in half of its revisions makes half as many pairs."""
    verdicts = [
        judge_pair(
            f"fine {k}" if k % 2 else f"bad {k}", f"bad {k}", chosen_flag="clear", rejected_flag="violates"
        )
        for k in range(100)
    ]
    counts = count_pairs(verdicts)
    assert (counts.n, counts.valid, dict(counts.reasons)["identical"]) == (100, 50, 50)
    assert counts.median_length_ratio == pytest.approx(7 / 6)
    assert counts.as_dict()["share"] == 0.5
