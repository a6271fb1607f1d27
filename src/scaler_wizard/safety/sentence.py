"""The canonical sentence: the one line that terminal, cockpit and voice all say before a decision.

Knows how to say a decision in at most 120 characters whatever the numbers and names are. Does not know
when a gate opens or what the person answers.
"""

from __future__ import annotations

import math

MAX_CHARACTERS = 120
NEGLIGIBLE_CHANGE = 0.005
"""Relative perplexity changes up to this size are said as "no quality drop expected"."""


def format_tokens(tokens: int) -> str:
    """A token count as people write it: 128 -> "128", 8192 -> "8K", 1536 -> "1.5K", 1048576 -> "1M".

    K is 1,024 and M 1,048,576. A count that is no round number of them keeps its digits, up to six.
    """
    if tokens < 1024:
        return str(tokens) if tokens > -1_000_000 else "?"
    for size, unit in ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if tokens >= size:
            tenths = tokens * 10 // size
            if tenths >= 100_000:
                return f"over 9999{unit}"
            if (tokens * 10) % size and tokens < 1_000_000:
                return str(tokens)
            return f"{tenths // 10}{unit}" if tenths % 10 == 0 else f"{tenths / 10:.1f}{unit}"
    raise AssertionError("unreachable: tokens >= 1024")


def format_change(expected_change: float | None) -> str:
    """A measured relative change of perplexity in words: 0.03 -> "expected quality drop 3%".

    Args:
        expected_change: perplexity after over before, minus 1, measured before any training at the new
            setting; positive is worse. None or not a number when it was not measured.
    """
    if expected_change is None or math.isnan(expected_change):
        return "quality change not measured"
    if abs(expected_change) <= NEGLIGIBLE_CHANGE:
        return "no quality drop expected"
    word = "drop" if expected_change > 0 else "gain"
    percent = abs(expected_change) * 100
    amount = "over 999%" if percent > 999 else f"{max(1, math.floor(percent + 0.5))}%"
    return f"expected quality {word} {amount}"


def expand_sentence(from_tokens: int, to_tokens: int, expected_change: float | None) -> str:
    """Before a longer context: "Ready to expand context 8K -> 16K; expected quality drop 3%; approve?"."""
    step = f"{format_tokens(from_tokens)} -> {format_tokens(to_tokens)}"
    return _checked(f"Ready to expand context {step}; {format_change(expected_change)}; approve?")


def adapt_sentence(model: str, steps: int, context: int) -> str:
    """Before the adaptation phase: "Ready to adapt NAME for 200 steps at context 8K; approve?"."""
    return _named(
        "Ready to adapt ", model, f" for {_count(steps)} steps at context {format_tokens(context)}; approve?"
    )


def finish_sentence(steps: int, expected_change: float | None, *, merge: bool = True) -> str:
    """Before the last phase: "Ready to finish: train 0 steps, merge and export; ...; approve?"."""
    ending = "merge and export" if merge else "export"
    quality = format_change(expected_change)
    return _checked(f"Ready to finish: train {_count(steps)} steps, {ending}; {quality}; approve?")


def stop_sentence(step: int, reason: str, target_phase: str) -> str:
    """After the breaker stopped: "Stopped at step 120: loss spike; roll back to P1?"."""
    return _named(f"Stopped at step {_count(step)}: ", reason, f"; roll back to {_clean(target_phase)[:16]}?")


def rolled_back_sentence(phase: str) -> str:
    """After a rollback: "Rollback complete; you are now at phase N"."""
    return _named("Rollback complete; you are now at phase ", phase, "")


def fit(text: str, limit: int = MAX_CHARACTERS) -> str:
    """`text` on one line, cut with "..." where it is longer than `limit` (at least 3) characters."""
    line = _clean(text)
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."


def _named(head: str, name: str, tail: str) -> str:
    """Head, name, tail, with the name cut so that head and tail always survive."""
    room = MAX_CHARACTERS - len(head) - len(tail)
    return _checked(head + fit(name, room) + tail)


def _checked(sentence: str) -> str:
    assert len(sentence) <= MAX_CHARACTERS, sentence
    return sentence


def _count(number: int) -> str:
    return f"{number:,}" if abs(number) < 10**12 else "over 10^12"


def _clean(text: str) -> str:
    """One line of printable characters: a model name may carry escape sequences for a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
