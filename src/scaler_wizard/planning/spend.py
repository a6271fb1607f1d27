"""What a run has cost so far and what it will have cost at its end: tokens, wall time, money. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
class Metered:
    """What a run has spent so far, as `metering.metered` reads it from the run's events."""

    total: Spent
    """Everything, loading and committing included."""
    cut: Spent
    """The part of it that an attempt spent after its last finished phase and then did not go on from: it was
    killed, paused or stopped. What a checkpoint inside the phase saved of it is counted here as well."""
    phases: Mapping[str, Spent]
    """By finished phase, all that led to its newest end, in however many attempts."""
    attempts: int


@dataclass(frozen=True, slots=True)
class Bill:
    """A running total and a forecast, as a gate shows them."""

    spent: Spent
    """By every attempt."""
    cut: Spent
    """The part of it that was spent in attempts before they were killed, paused or stopped."""
    attempts: int
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
            "attempts": self.attempts, "cut": self.cut.as_dict(),
        }  # fmt: skip


def bill(
    metered: Metered, done: Collection[str], predicted: Mapping[str, float],
    price_per_hour: float | None = None,
) -> Bill:  # fmt: skip
    """The running total and what is left, by the plan's own prediction corrected by how wrong it was so far.

    The correction is the ratio of measured to predicted seconds of the phases that are done, with all that
    was spent on them; phases that were not planned (a second attempt at a gate) count as spent, and correct
    nothing.

    Args:
        metered: the run so far.
        done: phases whose work is committed; the others are left, whatever was spent on them.
        predicted: seconds of every planned phase.
    """
    known = [name for name in done if name in metered.phases and predicted.get(name, 0.0) > LEAST_PREDICTED]
    measured = sum(metered.phases[name].seconds for name in known)
    expected = sum(predicted[name] for name in known)
    ratio = measured / expected if expected and measured else 1.0
    left = sum(seconds for name, seconds in predicted.items() if name not in done)
    return Bill(metered.total, metered.cut, metered.attempts, left * ratio, price_per_hour)


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def _cents(money: float | None) -> float | None:
    return None if money is None else round(money, 4)
