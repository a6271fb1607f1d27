"""Pictures of a run's course: training loss, memory, quality per phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scaler_wizard.report.plots import Chart
from scaler_wizard.report.record import Phase, Record
from scaler_wizard.report.svg import INK, draw, label, legend_above
from scaler_wizard.report.table import Column, Table
from scaler_wizard.report.values import Interval, mapping, text, whole
from scaler_wizard.report.words import (
    GIB,
    amount,
    count,
    listed,
    plural,
    share,
    size,
    untrained_phases,
    value_with_interval,
)

MAX_POINTS = 400
SMOOTHING_STEPS = 5
QUALITIES = (("perplexity", "lower is better"), ("accuracy", "share, higher is better"))
UNTRAINED_ROOM = 0.14
"""Share of the plot's height that is kept free under the loss curve for the names of untrained phases."""
FAR_LIMIT = 2.0
"""A memory limit this many times above everything measured is named, not drawn: it would flatten the rest."""


@dataclass(frozen=True)
class _Span:
    """The steps of one phase on the common axis: first+1 .. last."""

    phase: str
    first: int
    last: int


def loss_chart(record: Record) -> Chart | None:
    """Training loss over all steps, phases shaded, zero-step phases named."""
    losses, spans = _steps(record, "loss")
    if not losses:
        return None
    untrained = untrained_phases(record)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="optimiser step", ylabel="training loss (nats per token)")
        xs, raw = _thin(losses)
        axes.plot(xs, raw, color=INK.after, linewidth=1, alpha=0.45, label="each step")
        xs, smooth = _thin(_running_mean(losses, spans))
        axes.plot(xs, smooth, color=INK.after, label=f"{SMOOTHING_STEPS}-step mean")
        _shade(axes, spans)
        _mark_telegrams(axes, record, spans, losses)
        _mark_untrained(axes, record, spans, untrained)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.set_xlim(0, len(losses) + 1)
        legend_above(axes, columns=3)

    rows = tuple(
        (span.phase, count(span.last - span.first), *_ends(losses[span.first : span.last])) for span in spans
    )
    rows += tuple((phase, "0", "passed untrained", "passed untrained") for phase in untrained)
    columns = (Column("phase"), Column("steps", True), Column("first loss", True), Column("last loss", True))
    first, last = _ends(losses)
    sentence = (
        f"Over {plural(len(losses), 'step')} the training loss went from {first} to {last} nats per token"
    )
    if untrained:
        sentence += f"; {listed(untrained)} passed untrained, with no step at all"
    return Chart(
        "loss", "Training loss", sentence + ".",
        "Line chart: cross-entropy of each optimiser step in nats per token and its running mean, lower is "
        "better; "
        "shaded columns are phases; crosses mark warnings of the circuit breaker.",
        draw("loss", 290, paint), Table("Training loss by phase, means of the first and last steps", columns,
        rows),
    )  # fmt: skip


def memory_chart(record: Record) -> Chart | None:
    """Memory measured at every step against prediction and limit."""
    used, spans = _steps(record, "memory_bytes")
    memory = mapping(record.result.get("memory"))
    named = {
        key: found if (found := whole(memory.get(f"{key}_bytes"))) is not None and found > 0 else None
        for key in ("predicted", "low", "high", "measured_peak", "limit")
    }
    measured = [value for value in used if value > 0]
    peak = named["measured_peak"] or max(measured, default=None)
    if peak is None and named["predicted"] is None:
        return None
    top = max(0, peak or 0, *(value for key, value in named.items() if value and key != "limit"))
    far = named["limit"] is not None and named["limit"] > FAR_LIMIT * top

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="optimiser step", ylabel="memory (GiB)")
        if measured:
            xs, values = _thin([value / GIB for value in used])
            axes.plot(xs, values, color=INK.after, label="measured")
            axes.set_xlim(0, len(used) + 1)
        else:
            axes.set_xticks([])
        if peak:
            axes.axhline(peak / GIB, color=INK.after, linewidth=1.2, linestyle=":", label="measured peak")
        if named["low"] is not None and named["high"] is not None:
            axes.axhspan(named["low"] / GIB, named["high"] / GIB, color=INK.before, alpha=0.2, linewidth=0)
        if named["predicted"]:
            axes.axhline(
                named["predicted"] / GIB, color=INK.before, linestyle="--", label="predicted (band: error)"
            )
        if named["limit"] and not far:
            axes.axhline(named["limit"] / GIB, color=INK.bad, linewidth=1.6, label="limit (90%)")
        axes.set_ylim(0, 1.12 * (top if far or not named["limit"] else named["limit"]) / GIB)
        if far and named["limit"]:
            _note_limit(axes, named["limit"])
        _shade(axes, spans, named=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        legend_above(axes)

    names = {
        "predicted": "predicted", "low": "predicted, low end", "high": "predicted, high end",
        "measured_peak": "measured peak", "limit": "limit (90% of available)",
    }  # fmt: skip
    rows = tuple((names[key], size(value)) for key, value in named.items() if value is not None)
    return Chart(
        "memory", "Memory", _memory_takeaway(peak, named["predicted"], named["limit"]),
        "Line chart: memory in GiB at every optimiser step, with horizontal lines for the measured peak, "
        "the prediction "
        "with its error band, and the contract's limit of 90% of the available memory.",
        draw("memory", 280, paint), Table("Memory", (Column("what"), Column("size", True)), rows),
    )  # fmt: skip


def quality_chart(record: Record) -> Chart | None:
    """Perplexity and accuracy at the end of each phase."""
    panels = [(name, unit, points) for name, unit in QUALITIES if (points := _per_phase(record.phases, name))]
    if not panels:
        return None
    order = [phase.name for phase in record.phases]

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, unit, points) in zip(grid, panels, strict=True):
            _phase_panel(axes, order, points)
            axes.set_ylabel(name)
            axes.set_title(unit, loc="left", fontsize="small")
        grid[-1].set_xlabel("phase")
        grid[-1].set_xticks(range(len(order)), [label(name, 8) for name in order])
        grid[-1].set_xlim(-0.4, len(order) - 0.6)

    rows = tuple(
        (
            phase.name, value_with_interval(phase.perplexity, phase.perplexity_ci),
            value_with_interval(phase.accuracy, phase.accuracy_ci),
        )
        for phase in record.phases
    )  # fmt: skip
    columns = (Column("phase"), Column("perplexity [95% CI]", True), Column("accuracy [95% CI]", True))
    sentence = "; ".join(
        f"{name} {amount(points[0][1])} after {points[0][0]}, {amount(points[-1][1])} after {points[-1][0]}"
        for name, _, points in panels
    )
    return Chart(
        "quality", "Quality per phase", sentence[0].upper() + sentence[1:] + ".",
        "Dot charts over the phases in order: perplexity (lower is better) and accuracy (higher is better) "
        "at the end "
        "of each phase; bars are 95% confidence intervals where they were recorded.",
        draw("quality", 140 * len(panels) + 50, paint), Table("Quality per phase", columns, rows),
    )  # fmt: skip


def _steps(record: Record, field: str) -> tuple[list[float], list[_Span]]:
    """One value per step, and the phases' stretches.

    Steps repeated after a resume replace the earlier ones; those that a rollback undid are left out.
    """
    order = [phase.name for phase in record.phases]
    by_phase: dict[str, dict[int, float]] = {}
    for event in record.events:
        if event.type == "step":
            by_phase.setdefault(text(event.phase, 40), {})[event.step] = float(getattr(event, field))
        elif event.type == "rolled_back" and event.phase in order:
            for undone in order[order.index(event.phase) + 1 :]:
                by_phase.pop(undone, None)
    values: list[float] = []
    spans = []
    for phase, steps in by_phase.items():
        first = len(values)
        values += [steps[step] for step in sorted(steps)]
        spans.append(_Span(phase, first, len(values)))
    return values, spans


def _thin(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `MAX_POINTS` (step, mean) pairs: a million steps must not make a page of megabytes."""
    width = max(1, -(-len(values) // MAX_POINTS))
    groups = [(i, values[i : i + width]) for i in range(0, len(values), width)]
    return [i + (len(group) + 1) / 2 for i, group in groups], [sum(group) / len(group) for _, group in groups]


def _running_mean(values: Sequence[float], spans: Sequence[_Span]) -> list[float]:
    """Mean of up to `SMOOTHING_STEPS` steps back, never across phases."""
    smooth = []
    for span in spans:
        for i in range(span.first, span.last):
            window = values[max(span.first, i - SMOOTHING_STEPS + 1) : i + 1]
            smooth.append(sum(window) / len(window))
    return smooth


def _ends(losses: Sequence[float]) -> tuple[str, str]:
    """Mean of the first and of the last few losses: one step alone is noise."""
    few = max(1, min(SMOOTHING_STEPS, len(losses) // 2))
    return share(sum(losses[:few]) / few), share(sum(losses[-few:]) / few)


def _shade(axes: Axes, spans: Sequence[_Span], named: bool = True) -> None:
    for i, span in enumerate(spans):
        if i % 2 == 0:
            axes.axvspan(span.first + 0.5, span.last + 0.5, color=INK.shade, alpha=0.5, linewidth=0, zorder=0)
        if named:
            axes.annotate(
                label(span.phase, 8), ((span.first + span.last + 1) / 2, 1), xycoords=("data",
                "axes fraction"),
                xytext=(0, -4), textcoords="offset points", ha="center", va="top", fontweight="bold",
            )  # fmt: skip


def _mark_telegrams(axes: Axes, record: Record, spans: Sequence[_Span], losses: Sequence[float]) -> None:
    by_phase = {span.phase: span for span in spans}
    at = [
        span.first + event.step
        for event in record.events
        if event.type == "telegram"
        and (span := by_phase.get(text(event.phase, 40))) is not None
        and 0 < event.step <= span.last - span.first
    ]
    if at:
        marks = [losses[x - 1] for x in at]
        axes.plot(at, marks, "X", color=INK.bad, markersize=9, zorder=5, label="breaker spoke")


def _mark_untrained(axes: Axes, record: Record, spans: Sequence[_Span], untrained: Sequence[str]) -> None:
    """A dotted line where a phase without steps stands between its neighbours."""
    order = [phase.name for phase in record.phases]
    at: dict[int, list[str]] = {}
    for phase in untrained:
        earlier = [span.last for span in spans if span.phase in order[: order.index(phase)]]
        at.setdefault(max(earlier, default=0), []).append(label(phase, 8))
    if at:  # room under the curve for what is written there
        low, high = axes.get_ylim()
        axes.set_ylim(low - UNTRAINED_ROOM * (high - low), high)
    last = max((span.last for span in spans), default=0)
    for x, phases in at.items():
        axes.axvline(x + 0.5, color=INK.muted, linewidth=1.2, linestyle=(0, (1, 2)))
        to_right = x < last / 2
        axes.annotate(
            f"{', '.join(phases)} passed untrained", (x + 0.5, 0), xycoords=("data", "axes fraction"),
            xytext=(4 if to_right else -4, 5), textcoords="offset points", va="bottom",
            ha="left" if to_right else "right", fontsize="small",
        )  # fmt: skip


def _note_limit(axes: Axes, limit: float) -> None:
    axes.annotate(
        f"▲ limit {size(limit)}, far above", (0.99, 0.98), xycoords="axes fraction", ha="right", va="top",
        color=INK.bad, fontsize="small",
    )  # fmt: skip


def _memory_takeaway(peak: float | None, predicted: float | None, limit: float | None) -> str:
    if peak is None:
        return f"Predicted {size(predicted)}; nothing was measured."
    sentence = f"The measured peak is {size(peak)}"
    if predicted:
        off = peak / predicted - 1
        sentence += f", {abs(off):.0%} {'above' if off > 0 else 'below'} the prediction of {size(predicted)}"
    if limit:
        sentence += f", and {peak / limit:.0%} of the limit of {size(limit)}"
    return sentence + "."


def _per_phase(phases: Sequence[Phase], key: str) -> list[tuple[str, float, Interval | None]]:
    return [
        (phase.name, value, getattr(phase, f"{key}_ci"))
        for phase in phases
        if (value := getattr(phase, key)) is not None
    ]


def _phase_panel(axes: Axes, order: list[str], points: list[tuple[str, float, Interval | None]]) -> None:
    xs = [order.index(name) for name, _, _ in points]
    values = [value for _, value, _ in points]
    ends = [ci or (value, value) for _, value, ci in points]
    errors = [[max(0.0, v - low) for v, (low, _) in zip(values, ends, strict=True)],
              [max(0.0, high - v) for v, (_, high) in zip(values, ends, strict=True)]]  # fmt: skip
    axes.errorbar(xs, values, errors, fmt="-o", color=INK.after, markersize=7, elinewidth=1.4, capsize=4)
    for i, (x, value) in enumerate(zip(xs, values, strict=True)):
        rises = i + 1 < len(values) and values[i + 1] > value  # the line then leaves upwards
        axes.annotate(
            amount(value), (x, value), xytext=(7, -6 if rises else 6), textcoords="offset points",
            fontsize="small", ha="left", va="top" if rises else "bottom",
        )  # fmt: skip
    axes.margins(y=0.3)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
