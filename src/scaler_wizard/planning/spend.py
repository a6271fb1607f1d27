"""What a run has cost so far and what it will have cost at its end: tokens, wall time, money. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HOUR = 3600.0
LEAST_PREDICTED = 1e-9


@dataclass(frozen=True, slots=True)
class Spent:
    """What one phase, or several, took."""

    seconds: float = 0.0
    """Wall time of the work; a pause costs nothing."""
    generated: int = 0
    """Tokens that were generated."""
    scored: int = 0
    """Tokens that were read to score answers."""
    trained: int = 0
    """Tokens that were trained on."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.seconds + other.seconds, self.generated + other.generated, self.scored + other.scored,
            self.trained + other.trained,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "seconds": round(self.seconds, 1), "generated": self.generated, "scored": self.scored,
            "trained": self.trained,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bill:
    """A running total and a forecast, as a gate shows them."""

    spent: Spent
    left_seconds: float
    price_per_hour: float | None
    """In whatever currency the job's price is in; None where the machine is the person's own."""

    @property
    def total_seconds(self) -> float:
        """Expected at the end."""
        return self.spent.seconds + self.left_seconds

    @property
    def money(self) -> float | None:
        """Spent so far."""
        return self._price(self.spent.seconds)

    @property
    def total_money(self) -> float | None:
        """Expected at the end."""
        return self._price(self.total_seconds)

    def _price(self, seconds: float) -> float | None:
        return None if self.price_per_hour is None else seconds / HOUR * self.price_per_hour

    def words(self) -> str:
        """One clause: what it took and what it will have taken."""
        text = f"{_minutes(self.spent.seconds)} so far, about {_minutes(self.total_seconds)} in all"
        if self.money is None or self.total_money is None:
            return text
        return f"{text}; {self.money:.2f} so far, about {self.total_money:.2f} in all"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            **self.spent.as_dict(), "left_seconds": round(self.left_seconds, 1),
            "total_seconds": round(self.total_seconds, 1), "price_per_hour": self.price_per_hour,
            "money": _cents(self.money), "total_money": _cents(self.total_money), "words": self.words(),
        }  # fmt: skip


def bill(
    done: Mapping[str, Spent], predicted: Mapping[str, float], price_per_hour: float | None = None
) -> Bill:
    """The running total and what is left, by the plan's own prediction corrected by how wrong it was so far.

    The correction is the ratio of measured to predicted seconds of the phases that are done; phases that were
    not planned (a second attempt) count as spent, and correct nothing.

    Args:
        done: by phase.
        predicted: seconds of every planned phase.
    """
    spent = sum(done.values(), Spent())
    known = [name for name in done if predicted.get(name, 0.0) > LEAST_PREDICTED]
    measured = sum(done[name].seconds for name in known)
    expected = sum(predicted[name] for name in known)
    ratio = measured / expected if expected and measured else 1.0
    left = sum(seconds for name, seconds in predicted.items() if name not in done)
    return Bill(spent, left * ratio, price_per_hour)


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def _cents(money: float | None) -> float | None:
    return None if money is None else round(money, 4)
