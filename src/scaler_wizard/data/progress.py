"""How long work reports progress: `on_progress(done, total)` in requests or rows. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

OnProgress: TypeAlias = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """The default progress callback."""
