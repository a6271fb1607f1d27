"""Whether a router is worth it: better answers than one adapter for everything, with confidence. Pure.

The same held-out inputs are answered by the router's choice, by the right expert (oracle), by one adapter
that was trained on everything, by the bare base, and by the expert with most rows; and by the version that is
in service, where there is one. Compared in pairs.
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
class InService:
    """The version that would be replaced, and what it says to the same inputs."""

    version: str
    """"v003"."""
    right: tuple[bool, ...]
    """Row by row, the rows of `EndToEnd`; empty where it could not be asked."""
    lost: tuple[str, ...] = ()
    """Its experts that the new version lacks; no held-out row speaks for them."""
    refused: str = ""
    """Why it could not be asked; empty where it was."""

    @property
    def words(self) -> str:
        """As a person reads it."""
        return f"{self.version}, which is in service"

    def change(self, measured: EndToEnd) -> Change:
        """The new version compared with it, in pairs."""
        return Change(self.words, self.right, measured.right["routed"])

    def as_dict(self, measured: EndToEnd) -> dict[str, Any]:
        """JSON-ready: its version, its share and the paired comparison; the share only where it was asked."""
        found: dict[str, Any] = {
            "version": self.version, "words": self.words, "lost": list(self.lost), "refused": self.refused,
        }  # fmt: skip
        if self.refused:
            return found
        change = self.change(measured)
        test = change.test()
        found |= Share(sum(self.right), len(self.right)).as_dict()
        return found | {"routed_gained": test.n01, "routed_lost": test.n10, "p_value": change.p_value()}


@dataclass(frozen=True, slots=True)
class Standing:
    """What else the decision looks at."""

    least_rows: int
    """Held-out rows of the expert that has fewest."""
    accuracies: Sequence[float]
    """Routing accuracy of each seed."""
    pace: str


def decide_worth(measured: EndToEnd, standing: Standing, in_service: InService | None = None) -> Promotion:
    """Promote only where routed beats one adapter for all, the base and the majority expert, with confidence.

    What would replace a version in service must beat that one, too, and lack none of its experts.
    p-values are McNemar's, adjusted for all comparisons made (Benjamini & Hochberg 1995).

    Args:
        in_service: None where nothing is: the first version has nothing else to beat.
    """
    held, warnings = _too_little(standing), []
    rivals = [measured.against(setting) for setting in MUST_BEAT]
    if in_service is not None:
        held += _irreplaceable(in_service)
        if not in_service.refused:
            rivals.append(in_service.change(measured))
    adjusted = benjamini_hochberg([rival.p_value() for rival in rivals])
    for rival, p_value in zip(rivals, adjusted, strict=True):
        if not (rival.fall < 0 and p_value < SIGNIFICANT):
            held.append(
                f"not worth it: {_value(rival.after):.3f} right with the router, {_value(rival.before):.3f} "
                f"with {rival.name} (n {rival.n}, p {p_value:.2g})"
            )
    if measured.of_oracle < OF_ORACLE:
        warnings.append(f"routed answers reach {measured.of_oracle:.1%} of what the right experts would")
    if standing.accuracies and max(standing.accuracies) - min(standing.accuracies) > 0.02:
        warnings.append(
            f"seeds differ: routing accuracy {min(standing.accuracies):.3f} to {max(standing.accuracies):.3f}"
        )
    if held:
        return Promotion(False, tuple(held), tuple(warnings))
    said = ", ".join(f"{rival.name} {_value(rival.before):.3f}" for rival in rivals)
    routed = measured.share("routed")
    return Promotion(
        True, (f"{routed.value:.3f} right with the router; {said}; n {routed.n}",), tuple(warnings)
    )


def _irreplaceable(in_service: InService) -> list[str]:
    held = []
    if in_service.refused:
        held.append(f"{in_service.words}, could not be asked the same: {in_service.refused}")
    if in_service.lost:
        held.append(f"{in_service.words}, has experts that this one lacks: {', '.join(in_service.lost)}")
    return held


def _value(right: Sequence[bool]) -> float:
    return sum(right) / len(right) if right else 0.0


def _too_little(standing: Standing) -> list[str]:
    held = []
    if standing.pace != "full":
        held.append(f"a trial (pace {standing.pace}) is never promoted")
    if standing.least_rows < LEAST_PROMOTED_ROWS:
        held.append(f"{standing.least_rows} held-out rows of an expert, and {LEAST_PROMOTED_ROWS} are needed")
    if len(standing.accuracies) < LEAST_PROMOTED_SEEDS:
        held.append(f"{len(standing.accuracies)} seeds, and {LEAST_PROMOTED_SEEDS} are needed")
    return held
