"""Pictures of quality: loss by position, needles by depth, RoPE candidates; each with its takeaway.

A chart is None where the run holds nothing to draw. Pictures of the run's course are in `plots_course`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scaler_wizard.report.record import Candidate, Point, Record
from scaler_wizard.report.svg import INK, draw, label, legend_above
from scaler_wizard.report.table import Column, Table
from scaler_wizard.report.values import mapping, number, whole
from scaler_wizard.report.words import (
    count,
    listed,
    needle_takeaway,
    nll_takeaway,
    share,
    value_with_interval,
)

SERIES = {"before": "before", "truncated": "cut to base window", "after": "after"}
COLOURS = {"before": INK.before, "truncated": INK.third, "after": INK.after}
MARKS = {"before": "s", "truncated": "^", "after": "o"}
LINES = {"before": "--", "truncated": ":", "after": "-"}
MAX_PANELS = 6
SYMLOG_BEYOND = 0.5
SYMLOG_LINEAR = 0.1
DEFAULT_EPSILON = 0.05


@dataclass(frozen=True)
class Chart:
    """A picture with its words. `table` holds the same data for those who cannot see it."""

    key: str
    title: str
    takeaway: str
    description: str
    """What is drawn: axes, units, marks."""
    svg: str
    table: Table


def nll_chart(record: Record) -> Chart | None:
    """NLL by position, before and after, with base window and target marked."""
    curves = record.nll
    if not curves:
        return None
    base, target = (_marked(record, key) for key in ("base_context", "target_context"))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="position in the document (tokens)", ylabel="loss (nats per token)")
        for key, points in curves.items():
            _band(axes, points, key)
        _window(axes, base, "base window", "left")
        if target != base:
            _window(axes, target, "target", "right")
        axes.set_xlim(left=0)
        legend_above(axes, clearance=0.07)

    rows = tuple(
        (count(x), *(_cell(points, x) for points in curves.values()))
        for x in sorted({point.x for points in curves.values() for point in points})
    )
    columns = (Column("position", True), *(Column(f"{SERIES[key]} [95% CI]", True) for key in curves))
    return Chart(
        "nll", "Loss by position", nll_takeaway(record),
        "Line chart: mean negative log-likelihood in nats per token against token position, lower is better; "
        "bands are 95% confidence intervals; vertical lines mark the base window and the target.",
        draw("nll", 300, paint), Table("Loss by position, nats per token", columns, rows),
    )  # fmt: skip


def needle_chart(record: Record) -> Chart | None:
    """Needle accuracy by depth: one panel per context length."""
    if not record.needle:
        return None
    every = sorted({length for lengths in record.needle.values() for length in lengths})
    lengths = every if len(every) <= MAX_PANELS else [*every[: MAX_PANELS - 1], every[-1]]

    def paint(figure: Figure) -> None:
        columns = min(3, len(lengths))
        rows = math.ceil(len(lengths) / columns)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for axes, length in zip(panels, lengths, strict=False):
            _needle_panel(axes, record, length)
        for axes in list(panels)[len(lengths) :]:
            axes.set_axis_off()
        figure.supxlabel("depth of the needle (0 = start of the document)", fontsize="medium")
        figure.supylabel("needles found (share)", fontsize="medium")
        found = {
            name: handle
            for axes in figure.axes
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        order = sorted(found, key=[*SERIES.values(), "chance"].index)
        figure.legend(
            [found[name] for name in order],
            order,
            loc="outside upper left",
            ncols=4,
            handlelength=1.8,
            columnspacing=1.2,
        )

    rows = tuple(
        (
            f"{length:,}",
            share(depth),
            *(_cell(record.needle[key].get(length, ()), depth) for key in record.needle),
        )
        for length in every
        for depth in sorted({p.x for series in record.needle.values() for p in series.get(length, ())})
    )
    columns = (
        Column("context", True), Column("depth", True),
        *(Column(f"{SERIES[key]} [95% CI]", True) for key in record.needle),
    )  # fmt: skip
    return Chart(
        "needle", "Needles found by depth", needle_takeaway(record),
        "Small line charts, one per context length: share of hidden facts found against their depth, from 0 "
        "to 1, "
        "higher is better; bars are 95% confidence intervals; the dotted horizontal line is chance.",
        draw("needle", 270 if len(lengths) <= 3 else 420, paint),
        Table("Needles found, share", columns, rows),
    )  # fmt: skip


def candidates_chart(record: Record) -> Chart | None:
    """Untrained RoPE candidates at each length, the chosen one marked."""
    rows = [(phase, candidate) for phase, found in record.candidates.items() for candidate in found]
    if not rows:
        return None
    rows = rows[:40]
    epsilon = number(mapping(record.job.get("evaluation")).get("epsilon"))
    limit = DEFAULT_EPSILON if epsilon is None else epsilon

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _candidate_panel(left, rows, lambda c: (c.nll_difference, 2 * c.se if c.se is not None else None))
        _candidate_panel(right, rows, lambda c: (c.needle, None))
        values = [abs(c.nll_difference) for _, c in rows if c.nll_difference is not None]
        if max(values, default=0) > SYMLOG_BEYOND:
            _symlog(left, values)
        left.axvline(0, color=INK.muted, linewidth=1)
        left.axvline(limit, color=INK.bad, linewidth=1.2, linestyle="--")
        left.set_xlabel("loss minus base window\n(nats per token, ± 2 SE)")
        right.set_xlabel("needles found\n(share)")
        right.set_xlim(-0.05, 1.05)
        left.set_yticks(range(len(rows)), [_candidate_name(phase, c) for phase, c in rows])
        left.invert_yaxis()
        for face, name in ((INK.after, "chosen"), (INK.paper, "not chosen")):
            left.plot([], [], "o", color=INK.after, markerfacecolor=face, markersize=7.5, label=name)
        left.plot([], [], "--", color=INK.bad, linewidth=1.2, label=f"allowed rise {share(limit)}")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, columnspacing=1.4)

    columns = (
        Column("phase"), Column("method"), Column("loss difference", True), Column("standard error", True),
        Column("needles found", True), Column("gate"), Column("chosen"),
    )  # fmt: skip
    words = {True: "passed", False: "not passed", None: "–"}
    cells = tuple(
        (
            phase, c.method, share(c.nll_difference), share(c.se), share(c.needle), words[c.passed],
            "chosen" if c.chosen else "",
        )
        for phase, c in rows
    )  # fmt: skip
    return Chart(
        "candidates", "RoPE candidates, scored untrained", _candidates_takeaway(record),
        "Two dot charts with one row per phase and method: left, the loss difference to the base window "
        "with two "
        f"standard errors, lower is better, dashed line: the allowed rise of {share(limit)}; right, the "
        f"share of needles "
        "found, higher is better. The chosen method is filled and marked with an arrow.",
        draw("candidates", 135 + 25 * len(rows), paint), Table("RoPE candidates", columns, cells),
    )  # fmt: skip


def _band(axes: Axes, points: tuple[Point, ...], key: str) -> None:
    xs = [point.x for point in points]
    axes.plot(xs, [point.value for point in points], LINES[key], color=COLOURS[key], label=SERIES[key])
    with_ci = [(point.x, *point.ci) for point in points if point.ci]
    if with_ci:
        at, low, high = zip(*with_ci, strict=True)
        axes.fill_between(at, low, high, color=COLOURS[key], alpha=0.22, linewidth=0)


def _window(axes: Axes, at: int | None, name: str, side: str) -> None:
    if at is None:
        return
    axes.axvline(at, color=INK.muted, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"{name} {at:,}", (at, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
        textcoords="offset points",
        ha=side, va="bottom", fontsize="small",
    )  # fmt: skip


def _marked(record: Record, key: str) -> int | None:
    """A context length that is worth a mark: within twice the measured positions."""
    at, last = (
        whole(record.result.get(key)),
        max(point.x for points in record.nll.values() for point in points),
    )
    return at if at is not None and 0 < at <= 2 * last else None


def _cell(points: tuple[Point, ...], x: float) -> str:
    found = next((point for point in points if point.x == x), None)
    return value_with_interval(found.value, found.ci) if found else "–"


def _needle_panel(axes: Axes, record: Record, length: int) -> None:
    # A shift of a hundredth of the depth keeps coinciding series apart.
    for shift, (key, lengths) in zip((-0.018, 0.0, 0.018), record.needle.items(), strict=False):
        points = lengths.get(length, ())
        xs = [point.x + shift for point in points]
        values = [point.value for point in points]
        errors = [[v - (p.ci or (v, v))[0] for v, p in zip(values, points, strict=True)],
                  [(p.ci or (v, v))[1] - v for v, p in zip(values, points, strict=True)]]  # fmt: skip
        errors = [[max(0.0, error) for error in side] for side in errors]
        axes.errorbar(
            xs, values, errors, fmt=LINES[key] + MARKS[key], color=COLOURS[key], label=SERIES[key],
            markersize=5,
            linewidth=1.6, elinewidth=1.1,
        )  # fmt: skip
    if record.needle_chance is not None:
        axes.axhline(
            record.needle_chance, color=INK.text, linewidth=1.1, linestyle=(0, (1, 2)), label="chance"
        )
    axes.set_title(f"{length:,} tokens")
    axes.set_ylim(-0.04, 1.06)
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])


def _candidate_name(phase: str, candidate: Candidate) -> str:
    return f"{label(phase, 8)} {label(candidate.method, 14)}" + (" ▸" if candidate.chosen else "")


def _candidate_panel(
    axes: Axes,
    rows: list[tuple[str, Candidate]],
    value_of: Callable[[Candidate], tuple[float | None, float | None]],
) -> None:
    for y, (phase, candidate) in enumerate(rows):
        value, error = value_of(candidate)
        if y and rows[y - 1][0] != phase:
            axes.axhline(y - 0.5, color=INK.muted, linewidth=0.8)
        if value is None:
            continue
        axes.errorbar(
            value, y, xerr=abs(error) if error is not None else None, fmt="o", color=INK.after,
            markersize=7.5, markerfacecolor=INK.after if candidate.chosen else INK.paper, capsize=3,
            elinewidth=1.4,
        )  # fmt: skip
    axes.grid(axis="y", visible=False)


def _symlog(axes: Axes, values: list[float]) -> None:
    """Linear near zero, where the decision falls, logarithmic beyond."""
    top = math.ceil(math.log10(max(values)))
    axes.set_xscale("symlog", linthresh=SYMLOG_LINEAR, linscale=1.0)
    ticks = [0.0, *(10.0**power for power in range(-1, min(top, 6) + 1))]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _candidates_takeaway(record: Record) -> str:
    chosen = [(phase, c.method) for phase, found in record.candidates.items() for c in found if c.chosen]
    if not chosen:
        return "No candidate was chosen."
    methods = {method for _, method in chosen}
    if len(methods) == 1 and len(chosen) > 1:
        return f"{chosen[0][1]} was chosen at every length ({listed([phase for phase, _ in chosen])})."
    return f"Chosen: {listed([f'{method} in {phase}' for phase, method in chosen])}."
