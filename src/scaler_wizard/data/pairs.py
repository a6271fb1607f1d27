"""Whether a preference pair says what it is meant to say. Pure; torch-free.

"The revision always wins" made 41% valid pairs in a trial: 841 of 1,800 revisions repeated the answer. A pair
counts only where the critic flags the rejected answer and clears the chosen one, and the two differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from scaler_wizard.data.fingerprints import collapse

Flag = Literal["violates", "clear", "uncertain"]
PairReason = Literal["valid", "empty", "identical", "rejected not flagged", "chosen not cleared", "uncertain"]


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """Whether a pair is kept, and why not."""

    valid: bool
    reason: PairReason
    length_ratio: float | None
    """Characters of the chosen over those of the rejected answer; None where that one is empty."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def judge_pair(chosen: str, rejected: str, *, chosen_flag: Flag, rejected_flag: Flag) -> PairVerdict:
    """Valid only where the rejected one is flagged, the chosen one cleared, and they are two texts."""
    ratio = len(chosen) / len(rejected) if rejected else None
    reason: PairReason = "valid"
    if not chosen.strip() or not rejected.strip():
        reason = "empty"
    elif collapse(chosen) == collapse(rejected):
        reason = "identical"
    elif "uncertain" in (chosen_flag, rejected_flag):
        reason = "uncertain"
    elif rejected_flag != "violates":
        reason = "rejected not flagged"
    elif chosen_flag != "clear":
        reason = "chosen not cleared"
    return PairVerdict(reason == "valid", reason, ratio)


@dataclass(frozen=True, slots=True)
class PairCounts:
    """All pairs of a stage: how many are valid, and what became of the others."""

    n: int
    valid: int
    reasons: tuple[tuple[str, int], ...]
    median_length_ratio: float | None
    """Of the valid ones: far from 1, preference training learns length."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "n": self.n, "valid": self.valid, "share": self.valid / self.n if self.n else None,
            "reasons": dict(self.reasons), "median_length_ratio": self.median_length_ratio,
        }  # fmt: skip


def count_pairs(verdicts: Iterable[PairVerdict]) -> PairCounts:
    """The counts of a stage's pairs."""
    found: Sequence[PairVerdict] = tuple(verdicts)
    counted = Counter(verdict.reason for verdict in found)
    ratios = [v.length_ratio for v in found if v.valid and v.length_ratio is not None]
    return PairCounts(
        len(found), counted["valid"], tuple(sorted(counted.items())), median(ratios) if ratios else None
    )
