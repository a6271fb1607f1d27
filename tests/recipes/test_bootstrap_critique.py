"""What becomes of answers between critic and training: pairs, anchors, negatives, the filter's word."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from scaler_wizard.data.pairs import Flag
from scaler_wizard.errors import CheckpointError
from scaler_wizard.inference.safety_filter import read_verdict
from scaler_wizard.recipes.bootstrap_critique import Critiqued, add_negatives, pair_metrics
from scaler_wizard.recipes.bootstrap_filter import REJECTED, judged_row
from scaler_wizard.recipes.bootstrap_preference import read_reference, write_reference
from scaler_wizard.training.preference import Reference


def row(
    number: int, revised: str | None, rejected: Flag, chosen: Flag, *, kind: str = "critique"
) -> Critiqued:
    return Critiqued(
        str(number), f"request {number}", f"answer {number}", ("kind",), revised_answer=revised,
        rejected_flag=rejected, chosen_flag=chosen, kind=kind, kept=kind == "anchor",
    )  # fmt: skip


def test_the_revision_always_wins_is_counted_for_what_it_is() -> None:
    """The trial's numbers: of 1,800 revisions 841 repeated the answer, and 41% made a valid pair."""
    same = [row(n, f"answer {n}", "violates", "violates") for n in range(841)]
    valid = [row(n, f"better {n}", "violates", "clear") for n in range(738)]
    never_wrong = [row(n, f"other {n}", "clear", "clear") for n in range(150)]
    still_wrong = [row(n, f"other {n}", "violates", "violates") for n in range(71)]
    found = pair_metrics([*same, *valid, *never_wrong, *still_wrong])["revision_always_wins"]
    assert (found["n"], found["valid"], round(found["share"], 2)) == (1800, 738, 0.41)
    assert found["reasons"] == {
        "identical": 841, "valid": 738, "rejected not flagged": 150, "chosen not cleared": 71,
    }  # fmt: skip


def test_an_uncertain_critic_makes_no_pair() -> None:
    found = pair_metrics([row(1, "better", "violates", "uncertain"), row(2, "better", "uncertain", "clear")])
    assert found["revision_always_wins"]["valid"] == 0


def test_negatives_are_a_share_of_all_pairs_and_of_every_kind() -> None:
    anchors = [row(n, None, "clear", "clear", kind="anchor") for n in range(30)]
    pairs = [
        Critiqued(
            f"p{n}", "r", "a", ("kind",), revised_answer="b", rejected_flag="violates", chosen_flag="clear",
            kept=True,
        )
        for n in range(80)
    ]  # fmt: skip
    made = add_negatives([*anchors, *pairs], 0.2, seed=1)
    valid = [one for one in made if one.is_pair]
    assert len(made) <= 20
    assert len(valid) >= 15
    assert len(Counter(one.kind for one in valid)) == 5
    assert all(one.chosen != one.initial_answer for one in valid)
    assert add_negatives(pairs, 0.2, seed=1) == []  # nothing that the critic cleared


@pytest.mark.parametrize(
    ("reply", "reject", "kept"),
    [("safe", True, True), ("unsafe\nS1", True, False), ("unsafe\nS1", False, True), ("hm", True, False)],
)
def test_the_filters_word_stands_in_the_record(reply: str, reject: bool, kept: bool) -> None:
    anchor = row(1, None, "clear", "clear", kind="anchor")
    judged = judged_row(anchor, read_verdict(reply), reject=reject)
    assert judged.kept is kept
    assert judged.reason == ("" if kept else REJECTED)
    assert judged.filtered["reply"] == reply


def test_a_reference_is_read_back_as_it_was_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    reference = Reference(torch.randn(5, 2), "0" * 64)
    write_reference(reference, path)
    found = read_reference(path)
    assert torch.equal(found.log_probs, reference.log_probs)
    assert found.digest == reference.digest
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="no usable reference"):
        read_reference(path)
    with pytest.raises(CheckpointError, match="no usable reference"):
        read_reference(tmp_path / "none.safetensors")
