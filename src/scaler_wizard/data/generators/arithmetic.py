"""Addition and subtraction of a number below 10 * level and a one-digit number.

Results are never negative. Document form: `47 + 8 =`. The input spaces are small (1,000 sums at level 10),
so a sample of more rows than that repeats itself.
"""

from __future__ import annotations

import random

from scaler_wizard.data.generators.example import Example, check_level


def add(rng: random.Random, level: int) -> Example:
    """a + b with 0 <= a < 10 * level and 0 <= b < 10."""
    check_level(level)
    a, b = rng.randrange(10 * level), rng.randrange(10)
    return Example(
        task="add",
        level=level,
        input=f"{a} + {b}",
        answer=str(a + b),
        document=f"{a} + {b} =",
        instruction=rng.choice((f"Add {a} and {b}.", f"Add: {a}, {b}", f"Give the sum of {a} and {b}.")),
        question=rng.choice(
            (f"What is {a} plus {b}?", f"How many are {a} and {b} more?", f"{a} plus {b} makes what?")
        ),
    )


def subtract(rng: random.Random, level: int) -> Example:
    """a - b with 0 <= a < 10 * level and 0 <= b <= min(a, 9)."""
    check_level(level)
    a = rng.randrange(10 * level)
    b = rng.randrange(min(a, 9) + 1)
    return Example(
        task="subtract",
        level=level,
        input=f"{a} - {b}",
        answer=str(a - b),
        document=f"{a} - {b} =",
        instruction=rng.choice((f"Subtract {b} from {a}.", f"Take {b} from {a}.", f"Subtract: {a}, {b}")),
        question=rng.choice(
            (f"What is {a} minus {b}?", f"How many of {a} stay if {b} go?", f"{a} minus {b} makes what?")
        ),
    )
