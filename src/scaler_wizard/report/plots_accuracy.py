"""The picture of a file's effect: accuracy on the same questions before and after."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from scaler_wizard.report.plots import COLOURS, MARKS, SERIES, Chart
from scaler_wizard.report.record import Metric, Record
from scaler_wizard.report.svg import draw, label, legend_above
from scaler_wizard.report.table import Column, Table
from scaler_wizard.report.values import Interval
from scaler_wizard.report.words import count, listed, value_with_interval, verdict

QUESTIONS = ("questions", "held-out rows of earlier files")
APART = 0.09


def accuracy_chart(record: Record) -> Chart | None:
    """Accuracy by difficulty and on earlier files' rows, with 95% intervals; for runs that learn one file."""
    if record.result.get("recipe") != "continual":
        return None
    metrics = [
        metric for metric in record.metrics
        if metric.name.endswith(QUESTIONS) and not metric.name.startswith("loss")
        and metric.before is not None and metric.after is not None
    ]  # fmt: skip
    if not metrics:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(ylabel="right answers (share)", ylim=(-0.03, 1.03))
        for key, shift in (("before", -APART), ("after", APART)):
            sides = [_side(metric, key) for metric in metrics]
            places = [place + shift for place in range(len(metrics))]
            values = [value for value, _ in sides]
            axes.errorbar(
                places, values, _errors(sides), fmt=MARKS[key], color=COLOURS[key], label=SERIES[key],
                markersize=7, elinewidth=1.4, capsize=4,
            )  # fmt: skip
        axes.set_xticks(range(len(metrics)), [label(_short(metric.name), 14) for metric in metrics])
        axes.set_xlim(-0.5, len(metrics) - 0.5)
        legend_above(axes)

    rows = tuple(
        (
            metric.name, value_with_interval(metric.before, metric.before_ci),
            value_with_interval(metric.after, metric.after_ci), count(metric.n),
        )
        for metric in metrics
    )  # fmt: skip
    columns = (Column("questions"), Column("before", True), Column("after", True), Column("n", True))
    return Chart(
        "accuracy", "The same questions, before and after", _takeaway(metrics),
        "Points with bars: share of right answers before and after the file was learned, with 95% intervals, "
        "higher is better.",
        draw("accuracy", 270, paint), Table("Share of right answers [95% CI]", columns, rows),
    )  # fmt: skip


def _takeaway(metrics: Sequence[Metric]) -> str:
    told = {word: [_short(m.name) for m in metrics if verdict(m) == word] for word in ("better", "worse")}
    if not any(told.values()):
        return "No accuracy changed beyond its error."
    parts = [f"{word}: {listed(names)}" for word, names in told.items() if names]
    return f"Beyond measurement error {'; '.join(parts)}."


def _short(name: str) -> str:
    return "earlier files" if name.endswith("earlier files") else name.removesuffix(" questions")


def _side(metric: Metric, key: str) -> tuple[float, Interval | None]:
    value, interval = (
        (metric.before, metric.before_ci) if key == "before" else (metric.after, metric.after_ci)
    )
    assert value is not None
    return value, interval


def _errors(sides: Sequence[tuple[float, Interval | None]]) -> list[list[float]]:
    lows = [max(0.0, value - ci[0]) if ci else 0.0 for value, ci in sides]
    highs = [max(0.0, ci[1] - value) if ci else 0.0 for value, ci in sides]
    return [lows, highs]
