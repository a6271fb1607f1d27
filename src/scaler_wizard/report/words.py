"""Numbers as a person reads them, and sentences computed from the measurements. Nothing is claimed that
the intervals do not carry: a change counts only where the two 95% intervals do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from scaler_wizard.report.record import Metric, Point, Record
from scaler_wizard.report.values import Interval, items, mapping, number, text, whole

GIB = 2**30
NONE = "–"
STATUS_WORDS = {
    "completed": "completed",
    "paused": "paused",
    "stopped": "stopped by a person",
    "failed": "failed",
    "waiting": "waiting for a decision",
    "unfinished": "not finished",
}


def amount(value: float | None) -> str:
    """A number with three or four significant digits, thousands separated."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    if abs(value) >= 1e12 or abs(value) < 1e-4:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    shown = f"{value:,.{min(digits, 4)}f}"
    return shown.rstrip("0").rstrip(".") if digits > 2 and value == round(value, 2) else shown


def share(value: float | None) -> str:
    """A number that is compared with others of its column: fixed decimals by size."""
    if value is None:
        return NONE
    if value == 0 or 0.001 <= abs(value) < 10:
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{value:,.1f}" if 10 <= abs(value) < 1000 else amount(value)


def value_with_interval(value: float | None, ci: Interval | None, unit: str = "") -> str:
    """`0.970 [0.917, 0.991]`."""
    if value is None:
        return NONE
    shown = share(value) + (f" {unit}" if unit else "")
    return f"{shown} [{share(ci[0])}, {share(ci[1])}]" if ci else shown


def count(value: float | None) -> str:
    """A whole number, thousands separated."""
    return NONE if value is None else f"{round(value):,}"


def parameters(value: float | None) -> str:
    """`4.2 million`."""
    if value is None:
        return NONE
    for scale, word in ((1e9, "billion"), (1e6, "million")):
        if value >= scale:
            return f"{value / scale:.2f} {word}"
    return count(value)


def duration(seconds: float | None) -> str:
    """`1 min 45 s`."""
    if seconds is None or seconds < 0:
        return NONE
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    total = round(seconds)
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(count_bytes: float | None) -> str:
    """Bytes in GiB or MiB."""
    if count_bytes is None:
        return NONE
    return f"{count_bytes / GIB:.2f} GiB" if count_bytes >= GIB / 10 else f"{count_bytes / 2**20:.1f} MiB"


def moment(unix: float | None) -> str:
    """`2026-11-21 10:34:15 UTC`."""
    if unix is None or not 0 < unix < 253402300800:  # year 10000, where datetime ends
        return NONE
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def plural(n: int, word: str) -> str:
    """`1 step`, `28 steps`."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def verdict(metric: Metric) -> str:
    """`better`, `worse`, `same within error`, or "" where it cannot be told."""
    if metric.before is None or metric.after is None or not metric.better:
        return ""
    if metric.before_ci is None or metric.after_ci is None:
        return "no interval"
    if metric.after_ci[0] > metric.before_ci[1]:
        return "better" if metric.better == "higher" else "worse"
    if metric.after_ci[1] < metric.before_ci[0]:
        return "worse" if metric.better == "higher" else "better"
    return "same within error"


def headline(record: Record) -> str:
    """The run in one sentence."""
    version = mapping(record.result.get("version"))
    if version:
        fate = "promoted" if version.get("promote") is True else "held back"
        return (
            f"{text(mapping(record.result.get('file')).get('name'), 80)} is learned; its version is {fate}."
        )
    if record.result.get("recipe") == "bootstrap":
        return _stages_headline(record)
    effective, target = contexts(record)
    if effective is not None and target is not None:
        return f"Effective context {effective:,} of {target:,} tokens requested."
    if effective is not None:
        return f"Effective context {effective:,} tokens."
    done = [phase.name for phase in record.phases if phase.checkpoint]
    if done:
        return f"{plural(len(done), 'phase')} committed so far: {listed(done)}."
    return "No phase has been committed yet."


def _stages_headline(record: Record) -> str:
    passed = [whole(number) for number in items(record.result.get("passed"))]
    asked = whole(mapping(record.result.get("summary")).get("asked"))
    if mapping(record.result.get("base")).get("train") is False:
        return "Nothing was trained: there is no proven gap to close."
    return f"{len(passed)}{f' of {asked}' if asked else ''} stages passed their gates."


def contexts(record: Record) -> tuple[int | None, int | None]:
    """(effective, requested) context in tokens."""
    effective = whole(record.result.get("effective_context"))
    target = whole(record.result.get("target_context"))
    if target is None:
        target = whole(mapping(record.job.get("scaling")).get("target_context"))
    return effective, target


def summary(record: Record) -> list[str]:
    """Sentences under the headline: what changed, what got worse, how the context was reached."""
    version = mapping(record.result.get("version"))
    sentences = [
        reason[:1].upper() + reason[1:].rstrip(".") + "."
        for found in items(version.get("reasons"))[:8]
        if (reason := text(found, 300))
    ]
    effective, target = contexts(record)
    base = whole(record.result.get("base_context"))
    rope = mapping(record.result.get("rope"))
    method = text(rope.get("method"), 40)
    if effective and base and effective > base:
        how = f", by {method} scaling of its rotary positions" if method not in ("", "none") else ""
        sentences.append(f"That is {effective / base:.3g} times the {base:,} tokens it had before{how}.")
    if effective and target and effective < target:
        sentences.append(
            f"{target:,} tokens were not reached: {effective:,} is the last length that passed its gate."
        )
    verdicts: dict[str, list[str]] = {}
    for metric in record.metrics:
        verdicts.setdefault(verdict(metric), []).append(metric.name)
    if better := verdicts.get("better"):
        sentences.append(f"Better beyond measurement error: {listed(better)}.")
    if worse := verdicts.get("worse"):
        sentences.append(f"Worse beyond measurement error: {listed(worse)}.")
    elif better:
        sentences.append("Nothing measured got worse beyond its error.")
    untrained = untrained_phases(record)
    if untrained:
        sentences.append(f"{listed(untrained)} passed untrained: no optimiser step was needed there.")
    return sentences


def untrained_phases(record: Record) -> list[str]:
    """Phases that lengthened the context, passed their gate and took no step."""
    return [
        phase.name
        for phase in record.phases
        if phase.steps == 0 and phase.passed and phase.rope_method and phase.rope_method != "none"
    ]


def nll_takeaway(record: Record) -> str:
    """What the curve says beyond the base window."""
    base = number(record.result.get("base_context")) or math.inf
    late = {key: _mean([point for point in points if point.x > base]) for key, points in record.nll.items()}
    before, after = late.get("before"), late.get("after")
    if before is None or after is None:
        last = record.nll.get("after") or record.nll["before"]
        return f"At position {count(last[-1].x)} the loss is {last[-1].value:.2f} nats per token."
    change = after - before
    if abs(change) < 0.005:
        return f"Beyond the base window the loss is unchanged: {after:.2f} nats per token."
    word = "fell" if change < 0 else "rose"
    return f"Beyond the base window the mean loss {word} from {before:.2f} to {after:.2f} nats per token."


def needle_takeaway(record: Record) -> str:
    """Mean accuracy over the depths at the longest length that was measured after."""
    after = record.needle.get("after", {})
    length = max(after or next(iter(record.needle.values())))
    parts = []
    for key, name in (("before", "before"), ("truncated", "with the prompt cut to the base window")):
        mean = _mean(record.needle.get(key, {}).get(length, ()))
        if mean is not None:
            parts.append(f"{mean:.0%} {name}")
    mean = _mean(after.get(length, ()))
    if mean is None:
        return f"At {length:,} tokens needles are found in {listed(parts)}."
    found = f"At {length:,} tokens {mean:.0%} of the needles are found after the run"
    return f"{found}, {listed(parts)}." if parts else f"{found}."


def _mean(points: Sequence[Point]) -> float | None:
    return sum(point.value for point in points) / len(points) if points else None
