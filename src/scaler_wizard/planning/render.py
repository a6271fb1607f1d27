"""A plan as plain text of at most 100 columns. Knows no terminal, no colour."""

from __future__ import annotations

import textwrap

from scaler_wizard.planning.memory import MemoryEstimate
from scaler_wizard.planning.plan import Plan

WIDTH = 100


def render_plan(plan: Plan) -> list[str]:
    """Lines for the terminal: head, phases, memory of the largest phase, adapter, notes."""
    largest = max(plan.phases, key=lambda phase: phase.memory.total)
    lines = [
        f"Plan for {plan.job_name}: {plan.model}, {plan.strategy}, {plan.precision} on {plan.device}",
        f"Machine: {plan.hardware}",
        f"Context: {' -> '.join(f'{length:,}' for length in (plan.base_context, *plan.context_schedule))}",
        f"Learning rate {plan.learning_rate:g} ({plan.learning_rate_reason})",
        "",
        *_phase_table(plan),
        "",
        f"Memory at its peak ({largest.name}), limit {size(plan.memory_limit)}:",
        *_memory_table(largest.memory),
        "",
        f"Time: at most {duration(plan.seconds)} plus waiting at gates ({plan.seconds_basis})",
        f"Disk: {size(plan.disk_bytes)}",
    ]
    if plan.strategy in ("lora", "qlora"):
        lines += [
            "",
            f"Adapter: rank {plan.lora.rank}, alpha {plan.lora.alpha:g}, dropout {plan.lora.dropout:g}",
        ]
        lines += [f"- {reason}" for reason in plan.lora.reasons]
    if plan.notes:
        lines += ["", "Notes:", *(f"- {note}" for note in plan.notes)]
    if plan.proposals:
        lines += ["", "Earlier runs suggest (nothing is applied by itself):"]
        lines += [f"- {item.setting} = {item.value}: {item.reason}" for item in plan.proposals]
    return [part for line in lines for part in _wrap(line)]


def size(count: float) -> str:
    """Bytes as B, KB, MB or GB (powers of 1000)."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def duration(seconds: float) -> str:
    """Seconds as the two largest of days, hours, minutes and seconds."""
    total = round(seconds)
    parts = [
        (total // 86400, "d"),
        (total % 86400 // 3600, "h"),
        (total % 3600 // 60, "min"),
        (total % 60, "s"),
    ]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{value} {unit}" for value, unit in parts[:2])


def _phase_table(plan: Plan) -> list[str]:
    rows = [
        f"{'phase':<6} {'what happens':<33} {'context':>9} {'factor':>6} {'steps':>5} {'batch/micro':>13} "
        f"{'memory':>8} {'time':>11}"
    ]
    for phase in plan.phases:
        tokens = f"{phase.batch_tokens:,}/{phase.micro_batch_tokens:,}" if phase.steps else "-"
        rows.append(
            f"{phase.name:<6} {phase.title[:33]:<33} {phase.context:>9,} {phase.factor:>6.4g} "
            f"{phase.steps:>5} {tokens:>13} {size(phase.memory.total):>8} {duration(phase.seconds):>11}"
        )
    return rows


def _memory_table(memory: MemoryEstimate) -> list[str]:
    rows = []
    for line in memory.lines:
        when = "" if line.when == "always" else f" [{line.when} only]"
        rows.append(f"  {line.name:<12} {size(line.bytes):>9} +-{line.band:>4.0%}  {line.explanation}{when}")
    rows.append(f"  {'peak':<12} {size(memory.total):>9}  between {size(memory.low)} and {size(memory.high)}")
    return rows


def _wrap(line: str) -> list[str]:
    if len(line) <= WIDTH:
        return [line]
    indent = "  " if line.startswith("- ") else " " * 4
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, drop_whitespace=True, break_on_hyphens=False)
