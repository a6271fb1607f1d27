"""Which router of the ladder is kept: the cheapest that no other beats by more than chance. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from scaler_wizard.evals.statistics import mcnemar

LEVEL: Final = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """One router against the best one, on the same rows."""

    name: str
    accuracy: float
    only_best_right: int
    only_it_right: int
    p_value: float
    """Exact McNemar, two-sided; 1 for the best itself."""


@dataclass(frozen=True, slots=True)
class RouterChoice:
    """The router that is kept."""

    index: int
    """Its place in the ladder."""
    name: str
    best: str
    """The one with the most right rows."""
    comparisons: tuple[Comparison, ...]
    """In the ladder's order."""
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def choose_router(
    right: Sequence[Sequence[bool]], names: Sequence[str] = (), *, level: float = LEVEL
) -> RouterChoice:
    """Choose from a ladder of routers, the cheapest first.

    Args:
        right: for each router, which of the same validation rows it sends to the right expert.
        names: of the routers; their numbers when empty.
        level: a router whose losses against the best are less likely than this by chance is out.
    """
    assert right
    assert len({len(rows) for rows in right}) == 1
    named = list(names) or [str(number) for number in range(len(right))]
    hits = [sum(rows) for rows in right]
    best = hits.index(max(hits))
    n_rows = len(right[0])
    compared = []
    for name, rows in zip(named, right, strict=True):
        lost = sum(not mine and other for mine, other in zip(rows, right[best], strict=True))
        won = sum(mine and not other for mine, other in zip(rows, right[best], strict=True))
        compared.append(Comparison(name, sum(rows) / max(1, n_rows), lost, won, mcnemar(lost, won).p_exact))
    index = next(at for at, one in enumerate(compared) if at == best or one.p_value >= level)
    chosen = compared[index]
    reason = (
        f"{chosen.name}: {hits[index]} of {n_rows} right, the most"
        if index == best
        else f"{chosen.name}: {hits[index]} of {n_rows} right; {named[best]} has {hits[best]}, which is "
        f"within chance (p {chosen.p_value:.2f}), and costs more"
    )
    return RouterChoice(index, chosen.name, named[best], tuple(compared), reason)
