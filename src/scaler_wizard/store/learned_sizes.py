"""learned/KEY.json: the micro-batch size that a model got through on this machine, one small file a key.

One file a key, replaced whole, so that workers of several runs never write into each other's. Everything
read is checked: a file that is not as we write it counts as not there, which costs one measured step.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from scaler_wizard.store.durable import json_text, write_atomic
from scaler_wizard.store.names import SAFE_NAME, safe_name

MAX_BYTES = 4096
MAX_FILES = 10_000
_MOST = 1 << 50

Cause = Literal["out_of_memory", "killed", "measured"]


@dataclass(frozen=True)
class LearnedSize:
    """The largest forward pass that a model got through on a machine, with what was free then."""

    key: str
    """What model, machine and settings hash to."""
    tokens: int
    memory_available: int
    cause: Cause
    time: float
    """Unix time in seconds."""


def remember(folder: Path, size: LearnedSize) -> None:
    """Keep a size, over the one of the same key; a disk that refuses costs only the memory of it."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        write_atomic(folder / f"{safe_name(size.key, 'key')}.json", json_text(asdict(size)))


def learned_sizes(folder: Path) -> tuple[LearnedSize, ...]:
    """Every size that can be read, in order of key."""
    try:
        names = sorted(path for path in folder.iterdir() if path.suffix == ".json")[:MAX_FILES]
    except OSError:
        return ()
    return tuple(size for path in names if (size := _read(path)) is not None)


def _read(path: Path) -> LearnedSize | None:
    try:
        if path.is_symlink() or not path.is_file():
            return None
        with path.open("rb") as file:
            value = json.loads(file.read(MAX_BYTES + 1)[:MAX_BYTES])
        key, cause, time = value["key"], value["cause"], float(value["time"])
        numbers = value["tokens"], value["memory_available"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
    right = (
        isinstance(key, str)
        and SAFE_NAME.fullmatch(key)
        and path.stem == key
        and cause in get_args(Cause)
        and all(type(number) is int and 0 < number < _MOST for number in numbers)
        and math.isfinite(time)
    )
    return LearnedSize(key, numbers[0], numbers[1], cause, time) if right else None
