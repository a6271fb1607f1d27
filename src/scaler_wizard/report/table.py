"""Tables that are written once and shown twice: as text for a terminal, as cells for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len

from scaler_wizard.report.record import Metric, Record, metrics_of
from scaler_wizard.report.values import text, whole
from scaler_wizard.report.words import NONE, amount, count, duration, share, value_with_interval, verdict

TEXT_WIDTH = 100
GAP = 2


@dataclass(frozen=True)
class Column:
    """A heading; `numeric` columns are set flush right."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of equal length, one cell per column; the first cell names the row. Cells are plain text."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences that belong under the table."""


def metric_table(metrics: Sequence[Metric], seed: int | None) -> Table:
    """Before and after with n, 95% interval and baseline."""
    columns = (
        Column("measure"), Column("before [95% CI]", True), Column("after [95% CI]", True), Column("n", True),
        Column("baseline", True), Column("change"),
    )  # fmt: skip
    rows = tuple(
        (
            metric.name + (f" ({metric.unit})" if metric.unit else ""),
            value_with_interval(metric.before, metric.before_ci), value_with_interval(metric.after,
            metric.after_ci),
            count(metric.n), share(metric.baseline), verdict(metric) or NONE,
        )
        for metric in metrics
    )  # fmt: skip
    named: dict[str, list[str]] = {}
    for metric in metrics:
        if metric.baseline is not None and metric.baseline_name:
            named.setdefault(metric.baseline_name, []).append(metric.name)
    notes = [f"Baseline of {', '.join(names)}: {name}." for name, names in named.items()]
    notes += [f"{metric.name}: {metric.note.rstrip('.')}." for metric in metrics if metric.note]
    notes.append(
        "A change counts as better or worse only where the two 95% intervals do not overlap"
        + (f"; seed {seed}." if seed is not None else "; seed not recorded.")
    )
    return Table("Before and after", columns, rows, tuple(note[0].upper() + note[1:] for note in notes))


def phase_table(record: Record) -> Table:
    """One row per phase with its gate's verdict and the reasons for it; no column that no phase fills."""
    columns = (
        Column("phase"), Column("what"), Column("context", True), Column("steps", True), Column("time", True),
        Column("perplexity", True), Column("accuracy", True), Column("RoPE"), Column("gate"),
        Column("reasons"),
    )  # fmt: skip
    words = {True: "passed", False: "not passed", None: NONE}
    rows = tuple(
        (
            phase.name, phase.title or NONE, count(phase.context), count(phase.steps),
            duration(phase.seconds),
            amount(phase.perplexity), share(phase.accuracy), phase.rope_method or NONE, words[phase.passed],
            "; ".join(phase.reasons) or NONE,
        )
        for phase in record.phases
    )  # fmt: skip
    filled = [at for at in range(len(columns)) if at < 2 or any(row[at] != NONE for row in rows)]
    return Table(
        "Phases", tuple(columns[at] for at in filled), tuple(tuple(row[at] for at in filled) for row in rows)
    )


def format_table(result: Mapping[str, Any]) -> str:
    """The before/after table of result.json as text for a terminal, at most 100 columns wide.

    Holds no control character, so that a hostile name cannot command the terminal.
    """
    metrics = metrics_of(result)
    if not metrics:
        return "No measurement to compare yet."
    table = metric_table(metrics, whole(result.get("seed")))
    return as_text(table)


def as_text(table: Table, width: int = TEXT_WIDTH) -> str:
    """Columns padded with spaces; the first column is wrapped where the table would be too wide."""
    names = [column.name for column in table.columns]
    cells = [[_line(cell) for cell in row] for row in table.rows]
    widths = [max(cell_len(row[i]) for row in [names, *cells]) for i in range(len(names))]
    others = sum(widths[1:]) + GAP * (len(names) - 1)
    widths[0] = max(12, min(widths[0], width - others))
    if widths[0] + others > width:  # numbers of absurd size: every column gives way
        room = (width - widths[0] - GAP * (len(names) - 1)) // (len(names) - 1)
        widths[1:] = [min(wide, room) for wide in widths[1:]]
    lines = [*_row(names, widths, table.columns), "  ".join("─" * wide for wide in widths)]
    for row in cells:
        lines += _row(row, widths, table.columns)
    for i, note in enumerate(table.notes):
        lines += ([] if i else [""]) + _wrap(_line(note), width)
    return "\n".join(line.rstrip() for line in lines)


def _row(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> list[str]:
    wrapped = [_wrap(cell, wide) for cell, wide in zip(cells, widths, strict=True)]
    height = max(map(len, wrapped))
    lines = []
    for i in range(height):
        parts = []
        for column, wide, part in zip(columns, widths, wrapped, strict=True):
            cell = part[i] if i < len(part) else ""
            pad = " " * (wide - cell_len(cell))
            parts.append(pad + cell if column.numeric else cell + pad)
        lines.append((" " * GAP).join(parts))
    return lines


def _line(cell: str) -> str:
    return text(cell).replace("\n", " ").replace("\t", " ")


def _wrap(cell: str, width: int) -> list[str]:
    """Lines of at most `width` terminal cells, broken at spaces where there are any."""
    lines, line = [], ""
    for word in cell.split(" "):
        joined = f"{line} {word}" if line else word
        if cell_len(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while cell_len(line) > width:
            cut = next(i for i in range(len(line), 0, -1) if cell_len(line[:i]) <= width)
            lines.append(line[:cut])
            line = line[cut:]
    return [*lines, line]
