"""Numbers in binary: addition, subtraction, and conversion from decimal.

Level l has numbers of up to l + 4 bits. Results are never negative and have no leading zeros. Document form:
`binary 101 + 11 =`.
"""

from __future__ import annotations

import random

from scaler_wizard.data.generators.example import Example, check_level


def binary_add(rng: random.Random, level: int) -> Example:
    """a + b with both below 2^(level + 4)."""
    check_level(level)
    a, b = _number(rng, level), _number(rng, level)
    return _example(rng, "binary_add", level, f"{a:b} + {b:b}", a + b, ("add", "sum"))


def binary_subtract(rng: random.Random, level: int) -> Example:
    """a - b with b <= a < 2^(level + 4)."""
    check_level(level)
    b, a = sorted((_number(rng, level), _number(rng, level)))
    return _example(rng, "binary_subtract", level, f"{a:b} - {b:b}", a - b, ("subtract", "difference"))


def to_binary(rng: random.Random, level: int) -> Example:
    """A decimal number below 2^(level + 4) in binary."""
    check_level(level)
    n = rng.randrange(1 << (level + 4))
    return Example(
        task="to_binary",
        level=level,
        input=f"{n}",
        answer=f"{n:b}",
        document=f"decimal {n} in binary =",
        instruction=rng.choice((f"Write {n} in binary.", f"Convert to binary: {n}", f"Binary form of {n}.")),
        question=rng.choice((f"What is {n} in binary?", f"How is {n} written with 0 and 1 only?")),
    )


def _number(rng: random.Random, level: int) -> int:
    # Mostly long ones: uniform numbers of few bits would repeat across levels.
    bits = rng.randint(level + 3, level + 4)
    return rng.randrange(1 << bits)


def _example(
    rng: random.Random, task: str, level: int, text: str, result: int, words: tuple[str, str]
) -> Example:
    verb, noun = words
    return Example(
        task=task,
        level=level,
        input=text,
        answer=f"{result:b}",
        document=f"binary {text} =",
        instruction=rng.choice((f"In binary, {verb}: {text}", f"Give the binary {noun}: {text}")),
        question=rng.choice((f"What is {text} in binary numbers?", f"Which binary number is {text}?")),
    )
