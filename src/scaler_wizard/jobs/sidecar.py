"""The JSON beside a dropped file: {"priority": "high", "description": "..."}, both optional.

Hostile input: whatever is wrong with it costs only itself, never the file.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from scaler_wizard.jobs.inbox import SIDECAR, Entry
from scaler_wizard.jobs.inbox_io import open_below
from scaler_wizard.specs.continual import Priority

MAX_BYTES = 65_536
MAX_DESCRIPTION = 2000
KEYS = {"priority", "description"}


@dataclass(frozen=True)
class Sidecar:
    """What the JSON beside a file asks for, and what in it was not understood."""

    priority: Priority = "normal"
    description: str = ""
    problem: str = ""


def read_sidecar(root: Path, entry: Entry | None) -> Sidecar:
    """What the sidecar asks for. It is hostile input: whatever is wrong with it costs only itself."""
    if entry is None:
        return Sidecar()
    try:
        with os.fdopen(open_below(root, entry.path), "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"longer than {MAX_BYTES:,} bytes")
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} instead of an object")
    except (OSError, ValueError, RecursionError) as error:
        return Sidecar(problem=f"{entry.shown} was not used: {str(error)[:200] or type(error).__name__}")
    return _understand(entry, value)


def _understand(entry: Entry, value: dict[str, Any]) -> Sidecar:
    problems = []
    priority, description = value.get("priority", "normal"), value.get("description", "")
    if priority not in get_args(Priority):
        problems.append(f"priority is {str(priority)[:40]!r}, not high, normal or low")
        priority = "normal"
    if not isinstance(description, str):
        problems.append("description is not text")
        description = ""
    problem = f"{entry.shown}: {'; '.join(problems)}" if problems else ""
    printable = "".join(c for c in description if c.isprintable() or c == "\n")
    return Sidecar(priority, printable[:MAX_DESCRIPTION], problem)


def is_lonely_sidecar(root: Path, entry: Entry) -> bool:
    """Whether a JSON file that stands for itself says only what a sidecar says: its data file is missing."""
    if PurePosixPath(entry.path).suffix.lower() != SIDECAR or entry.size > MAX_BYTES:
        return False
    try:
        with os.fdopen(open_below(root, entry.path), "rb") as file:
            value = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value) and set(value) <= KEYS
