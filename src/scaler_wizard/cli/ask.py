"""Asking a person at a terminal while a run goes on: the gate prompt.

Reads standard input only when a gate is open and only when it is a terminal; the answer goes through
the same request as `scaler approve` from another terminal, and whichever comes first counts.
"""

from __future__ import annotations

import select
import sys
import termios
import time
from dataclasses import dataclass

PROMPT = "  [a]pprove  a[b]ort  [p]ause  [r]ollback [N] > "
ANSWERS = {
    "a": "approve",
    "approve": "approve",
    "b": "abort",
    "abort": "abort",
    "p": "pause",
    "pause": "pause",
}


@dataclass(frozen=True)
class Typed:
    """What was typed at the gate."""

    action: str
    target_phase: str | None = None


def understand(text: str) -> Typed | None:
    """A line typed at the prompt, or None where it means nothing."""
    words = text.strip().lower().split()
    if not words:
        return None
    if words[0] in ("r", "rollback"):
        target = words[-1] if len(words) > 1 else None
        return Typed("rollback", target.upper() if target and target.startswith("p") else target)
    action = ANSWERS.get(words[0])
    return Typed(action) if action else None


def read_line(seconds: float) -> str | None:
    """A line from the terminal, or None when nothing was typed for `seconds`."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.readline() if ready else None


def forget_typed() -> None:
    """Throw away what was typed so far on the terminal."""
    termios.tcflush(sys.stdin, termios.TCIFLUSH)


def remaining(deadline: float) -> str:
    """Time left as m:ss."""
    left = max(0, int(deadline - time.time()))
    return f"{left // 60}:{left % 60:02d}"
