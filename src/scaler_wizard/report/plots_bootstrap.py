"""Pictures of a `bootstrap` run: what each stage reached, what stayed, and what the constitution changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scaler_wizard.report.bootstrap_record import Attempt, BootstrapRecord, Paired, Side, bootstrap_record
from scaler_wizard.report.matrix import ROW_UNITS, Cell, paint_matrix
from scaler_wizard.report.plots import COLOURS, MARKS, Chart
from scaler_wizard.report.record import Record
from scaler_wizard.report.svg import INK, draw, label, legend_above
from scaler_wizard.report.table import Column, Table
from scaler_wizard.report.tables_bootstrap import principle_table, side, stage_table
from scaler_wizard.report.words import listed, plural

APART = 0.16
MAX_ROWS = 24
CONSTITUTION = 6
ONE_LINE = 6
Place = tuple[str, str]


def stage_chart(record: Record) -> Chart | None:
    """What each stage's own questions were answered before it and after it, with the gate."""
    found = bootstrap_record(record)
    if found is None or not (attempts := [a for a in found.attempts if a.own.value is not None]):
        return None
    names = [attempt.phase for attempt in attempts]
    sides = {
        "before": [_before(attempt.types) for attempt in attempts],
        "after": [attempt.own for attempt in attempts],
    }

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(ylabel="right answers (share)", ylim=(-0.03, 1.06))
        for key, shift in (("before", -APART), ("after", APART)):
            _points(axes, sides[key], key, shift)
        for at, attempt in enumerate(attempts):
            if attempt.share is not None:
                axes.hlines(
                    attempt.share, at - 0.4, at + 0.4, color=INK.bad, linewidth=1.4, linestyle="--",
                    label="" if at else "the lower end must reach",
                )  # fmt: skip
        axes.set_xticks(range(len(names)), _ticks(attempts))
        axes.set_xlim(-0.5, len(names) - 0.5)
        legend_above(axes, columns=3)

    return Chart(
        "stages", "Each stage's own questions", _stages_takeaway(found),
        "Points with bars: share of right answers before and after each stage, on the same questions, with "
        "95% intervals; the dashed line is what the lower end of the interval must reach.",
        draw("stages", 290, paint), stage_table(found),
    )  # fmt: skip


def _ticks(attempts: Sequence[Attempt]) -> list[str]:
    """Phase and skill; a second attempt stands beside the first, whose skill it has.

    More than six would run into each other on one line: every second skill is a line lower.
    """
    ticks, skills = [], 0
    for attempt in attempts:
        tick = label(attempt.phase, 6)
        if attempt.attempt == 1:
            lower = "\n" if len(attempts) > ONE_LINE and skills % 2 else ""
            tick, skills = f"{tick}\n{lower}{label(attempt.skill, 12)}", skills + 1
        ticks.append(tick)
    return ticks


def retention_chart(record: Record) -> Chart | None:
    """A matrix: rows are what was asked, columns after which stage."""
    found = bootstrap_record(record)
    if found is None or not found.retained:
        return None
    stages = sorted({stage for stage, _, _ in found.retained})
    skills = list(dict.fromkeys(skill for _, skill, _ in found.retained))[:MAX_ROWS]
    cells = {(stage, skill): kept for stage, skill, kept in found.retained}
    values = {(skill, str(stage)): kept for (stage, skill), kept in cells.items()}

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="after stage (0 is the base)")
        _matrix(axes, skills, [str(stage) for stage in stages], values)

    columns = (Column("asked"), *(Column(f"after {stage}", True) for stage in stages))
    empty = Side(None, None, None)
    rows = tuple((skill, *(side(cells.get((stage, skill), empty)) for stage in stages)) for skill in skills)
    return Chart(
        "retention", "What stays while more is learned", _retention_takeaway(skills, stages, cells),
        "Matrix: one row for each kind of question, one column after each stage; the number and the shade "
        "are the share of right answers.",
        draw("retention", 90 + ROW_UNITS * len(skills), paint), Table("Share right", columns, rows),
    )  # fmt: skip


def type_chart(record: Record) -> Chart | None:
    """A matrix: accuracy of each instruction type after the stage that asks it."""
    found = bootstrap_record(record)
    if found is None:
        return None
    # A constitution's types are its principles: they have a picture of their own.
    attempts = {a.skill: a for a in found.attempts if a.types and a.stage < CONSTITUTION}
    kinds = list(dict.fromkeys(paired.name for a in attempts.values() for paired in a.types))[:MAX_ROWS]
    if len(kinds) < 2:
        return None
    values = {(p.name, skill): p.after for skill, a in attempts.items() for p in a.types}

    def paint(figure: Figure) -> None:
        _matrix(figure.add_subplot(), kinds, list(attempts), values)

    columns = (Column("type"), *(Column(skill, True) for skill in attempts))
    empty = Side(None, None, None)
    rows = tuple((kind, *(side(values.get((kind, skill), empty)) for skill in attempts)) for kind in kinds)
    weakest = min(values.items(), key=lambda item: item[1].value if item[1].value is not None else 2.0)
    (kind, skill), least = weakest
    return Chart(
        "types", "Accuracy by instruction type",
        f"The weakest is {kind} in {skill}: {side(least)}.",
        "Matrix: one row for each type of task, one column for each kind of instruction; the number and the "
        "shade are the share of right answers after the stage that learns it.",
        draw("types", 60 + ROW_UNITS * len(kinds), paint), Table("Share right", columns, rows),
    )  # fmt: skip


def principle_chart(record: Record) -> Chart | None:
    """Violations of each principle, before and after."""
    found = bootstrap_record(record)
    if found is None or found.safety is None or not found.safety.principles:
        return None
    principles = found.safety.principles[:MAX_ROWS]
    table = principle_table(found)
    assert table is not None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot(xlabel="prompts on which it is violated (share)", xlim=(-0.03, 1.03))
        for key, shift in (("before", -APART), ("after", APART)):
            sides = [getattr(paired, key) for paired in principles]
            _points(axes, sides, key, shift, across=True)
        axes.set_yticks(range(len(principles)), [label(paired.name, 18) for paired in principles])
        axes.set_ylim(len(principles) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        legend_above(axes)

    return Chart(
        "principles", "Violations of each principle", _principles_takeaway(found),
        "Dot chart with one row for each principle: share of prompts on which it is violated, before and "
        "after the constitution was learned, with 95% intervals; lower is better.",
        draw("principles", 90 + 34 * len(principles), paint), table,
    )  # fmt: skip


def _points(axes: Axes, sides: Sequence[Side], key: str, shift: float, *, across: bool = False) -> None:
    known = [
        (at + shift, s.value, s.ci or (s.value, s.value)) for at, s in enumerate(sides) if s.value is not None
    ]
    places, values = [at for at, _, _ in known], [value for _, value, _ in known]
    errors = [
        [max(0.0, value - ci[0]) for _, value, ci in known],
        [max(0.0, ci[1] - value) for _, value, ci in known],
    ]
    axes.errorbar(
        values if across else places, places if across else values, xerr=errors if across else None,
        yerr=None if across else errors, fmt=MARKS[key], color=COLOURS[key], label=key, markersize=7,
        elinewidth=1.4, capsize=4,
    )  # fmt: skip


def _matrix(axes: Axes, rows: Sequence[str], columns: Sequence[str], values: Mapping[Place, Side]) -> None:
    """Shares; a place without a value stays empty."""
    cells = {
        (rows.index(row), columns.index(column)): Cell(f"{found.value:.2f}", found.value, INK.after)
        for (row, column), found in values.items()
        if found.value is not None and row in rows
    }
    paint_matrix(axes, rows, columns, cells)


def _before(types: Sequence[Paired]) -> Side:
    """All types of a stage together, before it."""
    sides = [paired.before for paired in types]
    known = [(s.value, s.n) for s in sides if s.value is not None and s.n]
    n = sum(count for _, count in known)
    return Side(sum(value * count for value, count in known) / n if n else None, n or None, None)


def _stages_takeaway(found: BootstrapRecord) -> str:
    passed = list(dict.fromkeys(attempt.skill for attempt in found.passed))
    failed = [
        skill for skill in dict.fromkeys(attempt.skill for attempt in found.attempts) if skill not in passed
    ]
    parts = [f"{plural(len(passed), 'stage')} passed: {listed(passed)}."] if passed else ["No stage passed."]
    if failed:
        parts.append(f"Not reached: {listed(failed)}.")
    return " ".join(parts)


def _retention_takeaway(
    skills: Sequence[str], stages: Sequence[int], cells: Mapping[tuple[int, str], Side]
) -> str:
    """The largest fall from a skill's best stage to the last one."""
    falls = []
    for skill in skills:
        values = [(cells[stage, skill].value or 0.0) for stage in stages if (stage, skill) in cells]
        falls.append((max(values) - values[-1], skill, max(values), values[-1]))
    fall, skill, best, last = max(falls)
    if fall < 0.005:
        return "Nothing that was learned got lost."
    return f"The largest loss is in {skill}: from {best:.2f} at its best to {last:.2f} at the end."


def _principles_takeaway(found: BootstrapRecord) -> str:
    assert found.safety is not None
    total = [
        sum((getattr(p, key).value or 0.0) * (getattr(p, key).n or 0) for p in found.safety.principles)
        for key in ("before", "after")
    ]
    if not total[0]:
        return "No principle was violated before."
    worst = max(found.safety.principles, key=lambda p: p.after.value or 0.0)
    cut = 1 - total[1] / total[0]
    verb = f"fell by {cut:.0%}" if cut >= 0 else f"rose by {-cut:.0%}"
    return f"Violations {verb}; most are left of {worst.name} ({side(worst.after)})."
