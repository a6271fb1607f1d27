"""Files that a stage writes and a later one reads: JSON lines, found again by their SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scaler_wizard.data.jsonl_writer import JsonlWriter
from scaler_wizard.errors import RunError


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write a file whole or not at all; its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with JsonlWriter(path, force=True) as writer:
        for row in rows:
            writer.write(row)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_lines(path: Path, sha256: str) -> list[dict[str, Any]]:
    """The rows of a file that `write_lines` wrote.

    Raises:
        RunError: it is missing, or not the file that was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        content, found = b"", f"{path} cannot be read ({error.strerror})"
    else:
        found = f"{path} is not the file that its stage wrote"
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RunError(
            found, f"a file of SHA-256 {sha256[:16]}...",
            "roll back to before the stage it belongs to; the stage then makes it again",
        )  # fmt: skip
    return [json.loads(line) for line in content.splitlines()]
