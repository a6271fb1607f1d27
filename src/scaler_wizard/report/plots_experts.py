"""Pictures of an `experts` run: where inputs were sent, what confidence is worth, who answers how well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scaler_wizard.report.matrix import ROW_UNITS, Cell, paint_matrix
from scaler_wizard.report.plots import Chart
from scaler_wizard.report.record import Record
from scaler_wizard.report.svg import INK, draw, label
from scaler_wizard.report.table import Column, Table
from scaler_wizard.report.tables_experts import abstention_table, answers_table, experts_of, labels_of
from scaler_wizard.report.values import Interval, interval, items, mapping, number, text, whole

MOST_LABELS = 24


def confusion_chart(record: Record) -> Chart | None:
    """A matrix: whose inputs (rows) were sent to whom (columns)."""
    found = experts_of(record)
    labels, cells = labels_of(found), _confusion(found)
    if not labels or len(labels) > MOST_LABELS or len(cells) != len(labels):
        return None

    def paint(figure: Figure) -> None:
        _matrix(figure.add_subplot(xlabel="sent to", ylabel="inputs of"), labels, cells)

    wrong = sum(n for i, row in enumerate(cells) for j, n in enumerate(row) if i != j)
    total = sum(map(sum, cells))
    rows = tuple((name, *(f"{n:,}" for n in row)) for name, row in zip(labels, cells, strict=True))
    columns = (Column("inputs of"), *(Column(f"to {name}", True) for name in labels))
    return Chart(
        "confusion", "Where inputs were sent",
        f"{wrong:,} of {total:,} held-out inputs went astray.",
        "Matrix: one row for the inputs of each expert, one column for where they were sent; the number "
        "counts inputs, the shade is their share of the row.",
        draw("confusion", 90 + ROW_UNITS * len(labels), paint), Table("Inputs sent", columns, rows),
    )  # fmt: skip


def settings_chart(record: Record) -> Chart | None:
    """Right answers in every setting, with intervals."""
    found = experts_of(record)
    table = answers_table(found)
    settings = mapping(mapping(found.get("end_to_end")).get("settings"))
    known = [
        _side(mapping(side)) for side in settings.values() if number(mapping(side).get("value")) is not None
    ]
    if table is None or not known:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="right answers (share)", xlim=(-0.03, 1.03))
        for at, (_, value, (low, high)) in enumerate(known):
            axes.hlines(at, low, high, color=INK.after, linewidth=2.0)
            axes.plot([value], [at], "o", color=INK.after)
        axes.set_yticks(range(len(known)), [label(name, 24) for name, _, _ in known])
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)

    best = max(known, key=lambda item: item[1])
    return Chart(
        "settings", "Who answers how well", f"Most right answers: {best[0]}, {best[1]:.3f}.",
        "Dot chart: one row for each way to answer the same held-out inputs; points are shares of right "
        "answers, lines their 95% intervals.",
        draw("settings", 90 + 34 * len(known), paint), table,
    )  # fmt: skip


def abstention_chart(record: Record) -> Chart | None:
    """Of the inputs that are still routed above a confidence, how many go right."""
    found = experts_of(record)
    table = abstention_table(found)
    points = [_point(mapping(point)) for point in items(mapping(found.get("routing")).get("abstention"))]
    known = [point for point in points if point is not None]
    if table is None or not known:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="inputs that are routed (share)", ylabel="of these right (share)")
        axes.plot([x for _, x, _ in known], [y for _, _, y in known], "o-", color=INK.after, linewidth=1.5)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(min(0.9, *(y for _, _, y in known)) - 0.02, 1.02)

    error = number(mapping(found.get("routing")).get("calibration_error"))
    _, all_routed, right = known[0]
    said = "" if error is None else f" Its confidence is off by {error:.3f} on average."
    return Chart(
        "abstention", "What abstaining would save",
        f"With {all_routed:.0%} routed, {right:.1%} are right.{said}",
        "Line chart: each point is a threshold; to the left fewer inputs are routed, upwards more of these "
        "are sent to the right expert.",
        draw("abstention", 240, paint), table,
    )  # fmt: skip


def _point(point: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(threshold, share routed, share of these right); None where nothing is routed any more."""
    answered = mapping(point.get("answered"))
    found = (number(point.get("threshold")), number(point.get("coverage")), number(answered.get("value")))
    if None in found or not whole(answered.get("n")):
        return None
    threshold, coverage, right = (min(1.0, max(0.0, value or 0.0)) for value in found)
    return threshold, coverage, right


def _confusion(found: Mapping[str, Any]) -> list[list[int]]:
    rows = items(mapping(found.get("routing")).get("confusion"))
    return [[whole(n) or 0 for n in items(row)][: len(rows)] for row in rows]


def _side(side: Mapping[str, Any]) -> tuple[str, float, Interval]:
    value = number(side.get("value")) or 0.0
    return text(side.get("words"), 40), value, interval(side.get("ci95")) or (value, value)


def _matrix(axes: Axes, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    cells = {
        (y, x): Cell(f"{n:,}", n / max(1, sum(row)), INK.after if x == y else INK.bad)
        for y, row in enumerate(counts)
        for x, n in enumerate(row)
    }
    paint_matrix(axes, labels, labels, cells)
