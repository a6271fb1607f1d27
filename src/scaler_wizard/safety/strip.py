"""The quick-glance strip: one line of at most 80 columns per tick, for SSH sessions.

A projection of the cockpit payload; knows nothing else. Missing values are "-".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, tzinfo

from scaler_wizard.specs.cockpit import CockpitPayload, RunStatus

WIDTH = 80
STATUS_WORDS: Mapping[RunStatus, str] = {
    "initializing": "init",
    "running": "ok",
    "paused": "pause",
    "warning": "WARN",
    "stopped": "STOP",
    "completed": "done",
    "failed": "FAIL",
}


def quick_glance(payload: CockpitPayload, *, memory_label: str = "VRAM", zone: tzinfo | None = None) -> str:
    """`[P2] ok|ppl+0.02|acc 0.84|vibe 0.75|VRAM 11.2/16G|8m left|gate 20:31`, at most 80 columns, ASCII.

    "ppl" is the slope of perplexity per optimiser step over the breaker's window.

    Args:
        memory_label: what the memory numbers are: "VRAM", or "RAM" on a CPU.
        zone: time zone the gate's time is shown in; its own offset when None.
    """
    quality, resources = payload.quality_metrics, payload.resource_usage
    fields = [
        f"[{_ascii(payload.phase, 6)}] {STATUS_WORDS[payload.status]}",
        f"ppl{_slope(quality.perplexity_slope)}",
        f"acc {_share(quality.accuracy)}",
        f"vibe {_share(quality.emergent_vibe_score)}",
        f"{_ascii(memory_label, 4)} {_gib(resources.vram_used_gb)}/{_gib(resources.vram_total_gb)}G",
        f"{_duration(resources.estimated_time_left_min)} left",
        f"gate {_gate(payload.human_contract.next_decision_point, zone)}",
    ]
    line = "|".join(fields)
    assert len(line) <= WIDTH, line
    return line


def _ascii(text: str, width: int) -> str:
    """Printable ASCII only: one column a character, and no escape sequence reaches the terminal."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:width] or "-"


def _slope(value: float | None) -> str:
    """At most 5 characters: +0.02, -12.3, +>99, or " -"."""
    if value is None or not math.isfinite(value):
        return " -"
    if abs(value) >= 99.95:
        return "+>99" if value > 0 else "->99"
    text = f"{value:+.2f}" if abs(value) < 9.995 else f"{value:+.1f}"
    return "+0.00" if float(text) == 0 else text


def _share(value: float | None) -> str:
    """At most 4 characters; what is no share of 1 is not shown as one."""
    return f"{value:.2f}" if value is not None and 0 <= value <= 1 else "-"


def _gib(value: float) -> str:
    """At most 4 characters: 11.2, 16, 0, 999, >999."""
    if not math.isfinite(value) or value < 0:
        return "-"
    if value >= 999.5:
        return ">999"
    text = f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
    return text.removesuffix(".0")


def _duration(minutes: float | None) -> str:
    """At most 4 characters: minutes up to two hours, hours up to two days, then days."""
    if minutes is None or not math.isfinite(minutes) or minutes < 0:
        return "-"
    if minutes <= 119:
        return f"{math.ceil(minutes)}m"
    if minutes < 48 * 60:
        return f"{minutes / 60:.0f}h"
    days = minutes / (24 * 60)
    return f"{days:.0f}d" if days < 99.5 else ">99d"


def _gate(point: str | None, zone: tzinfo | None) -> str:
    """HH:MM of an ISO time, else the phase's name; at most 6 characters."""
    if not point:
        return "-"
    try:
        moment = datetime.fromisoformat(point)
    except ValueError:
        return _ascii(point, 6)
    if zone is not None and moment.tzinfo is not None:
        try:
            moment = moment.astimezone(zone)
        except OverflowError:  # year 1 or 9999 moved out of range
            return "-"
    return moment.strftime("%H:%M")
