"""Hostile JSON values as harmless ones: what is of the wrong kind counts as absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_TEXT = 4000
MAX_ITEMS = 2000
MAX_NUMBER = 1e18
"""An exabyte; plots of larger numbers overflow."""
Interval = tuple[float, float]


def number(value: object) -> float | None:
    """`value` as a float, or None where it is none, not finite, or beyond anything a run can measure."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        as_float = float(value)
    except OverflowError:
        return None
    return as_float if abs(as_float) <= MAX_NUMBER else None


def whole(value: object) -> int | None:
    """`value` as an int, or None."""
    found = number(value)
    return None if found is None else round(found)


def text(value: object, limit: int = MAX_TEXT) -> str:
    """A string of at most `limit` characters without control characters; "" for what is no scalar."""
    if value is None or not isinstance(value, str | int | float):
        return ""
    shown = "".join(char if char.isprintable() or char in "\n\t" else "�" for char in str(value)[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def mapping(value: object) -> Mapping[str, Any]:
    """`value` where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: object) -> list[Any]:
    """The first `MAX_ITEMS` members of a list, else none."""
    return list(value[:MAX_ITEMS]) if isinstance(value, list | tuple) else []


def interval(value: object) -> Interval | None:
    """`[low, high]` as an ordered pair of finite numbers, or None."""
    ends = [number(end) for end in items(value)]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return min(ends[0], ends[1]), max(ends[0], ends[1])
