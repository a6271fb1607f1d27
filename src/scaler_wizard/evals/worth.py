"""Whether a router is worth it: better answers than one adapter for everything, with confidence. Pure.

The same held-out inputs are answered by the router's choice, by the right expert (oracle), by one adapter
that was trained on everything, by the bare base, and by the expert with most rows. Compared in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from scaler_wizard.evals.promotion import SIGNIFICANT, Change, Promotion
from scaler_wizard.evals.routing import Share
from scaler_wizard.evals.statistics import benjamini_hochberg
from scaler_wizard.planning.experts import LEAST_PROMOTED_ROWS, LEAST_PROMOTED_SEEDS

Setting = Literal["routed", "oracle", "multitask", "base", "majority"]
SETTINGS: Final[tuple[Setting, ...]] = ("routed", "oracle", "multitask", "base", "majority")
MUST_BEAT: Final[tuple[Setting, ...]] = ("multitask", "base", "majority")
WORDS: Final[Mapping[Setting, str]] = {
    "routed": "the router's choice", "oracle": "always the right expert", "multitask": "one adapter for all",
    "base": "the base alone", "majority": "always the expert with most rows",
}  # fmt: skip
OF_ORACLE = 0.99
"""Goal for the routed share of the oracle's right answers; missed, it is said, not held back."""


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """Right or wrong, row by row, the same rows in every setting."""

    right: Mapping[Setting, tuple[bool, ...]]

    def __post_init__(self) -> None:
        assert set(self.right) == set(SETTINGS)
        assert len({len(row) for row in self.right.values()}) == 1, "not the same rows"

    def share(self, setting: Setting) -> Share:
        """Right answers in one setting."""
        return Share(sum(self.right[setting]), len(self.right[setting]))

    @property
    def of_oracle(self) -> float:
        """Right answers by the router's choice, as a share of those by the right experts; 0 without any."""
        best = self.share("oracle").right
        return self.share("routed").right / best if best else 0.0

    def against(self, setting: Setting) -> Change:
        """Routed compared with another setting, in pairs."""
        return Change(WORDS[setting], self.right[setting], self.right["routed"])

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: each setting's share, and the paired comparison of routed with it."""
        rows: dict[str, Any] = {}
        for setting in SETTINGS:
            rows[setting] = {"words": WORDS[setting], **self.share(setting).as_dict()}
            if setting != "routed":
                change = self.against(setting)
                test = change.test()
                rows[setting] |= {
                    "routed_gained": test.n01,
                    "routed_lost": test.n10,
                    "p_value": change.p_value(),
                }
        return {"settings": rows, "of_oracle": self.of_oracle}


@dataclass(frozen=True, slots=True)
class Standing:
    """What else the decision looks at."""

    least_rows: int
    """Held-out rows of the expert that has fewest."""
    accuracies: Sequence[float]
    """Routing accuracy of each seed."""
    pace: str


def decide_worth(measured: EndToEnd, standing: Standing) -> Promotion:
    """Promote only where routed beats one adapter for all, the base and the majority expert, with confidence.

    p-values are McNemar's, adjusted for three comparisons (Benjamini & Hochberg 1995).
    """
    held, warnings = _too_little(standing), []
    adjusted = benjamini_hochberg([measured.against(setting).p_value() for setting in MUST_BEAT])
    for setting, p_value in zip(MUST_BEAT, adjusted, strict=True):
        change = measured.against(setting)
        routed, other = measured.share("routed").value, measured.share(setting).value
        if not (routed > other and p_value < SIGNIFICANT):
            held.append(
                f"not worth it: {routed:.3f} right with the router, {other:.3f} with {WORDS[setting]} "
                f"(n {change.n}, p {p_value:.2g})"
            )
    if measured.of_oracle < OF_ORACLE:
        warnings.append(f"routed answers reach {measured.of_oracle:.1%} of what the right experts would")
    if standing.accuracies and max(standing.accuracies) - min(standing.accuracies) > 0.02:
        warnings.append(
            f"seeds differ: routing accuracy {min(standing.accuracies):.3f} to {max(standing.accuracies):.3f}"
        )
    if held:
        return Promotion(False, tuple(held), tuple(warnings))
    said = ", ".join(f"{WORDS[setting]} {measured.share(setting).value:.3f}" for setting in MUST_BEAT)
    return Promotion(
        True,
        (f"{measured.share('routed').value:.3f} right with the router; {said}; n {change.n}",),
        tuple(warnings),
    )


def _too_little(standing: Standing) -> list[str]:
    held = []
    if standing.pace != "full":
        held.append(f"a trial (pace {standing.pace}) is never promoted")
    if standing.least_rows < LEAST_PROMOTED_ROWS:
        held.append(f"{standing.least_rows} held-out rows of an expert, and {LEAST_PROMOTED_ROWS} are needed")
    if len(standing.accuracies) < LEAST_PROMOTED_SEEDS:
        held.append(f"{len(standing.accuracies)} seeds, and {LEAST_PROMOTED_SEEDS} are needed")
    return held
