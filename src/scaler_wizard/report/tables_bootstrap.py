"""The tables of a `bootstrap` run: every gate with its numbers, and what was generated. Texts only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaler_wizard.report.bootstrap_record import Attempt, BootstrapRecord, Paired, Side
from scaler_wizard.report.table import Column, Table
from scaler_wizard.report.values import interval, items, mapping, number, text, whole
from scaler_wizard.report.words import NONE, count, duration, listed, share, value_with_interval

FULL = 500
"""Questions that a gate is meant to decide on; a demonstration asks fewer."""
GATE = {True: "passed", False: "not passed", None: NONE}
WAYS = {"raw": "as it stands", "templated": "in a template", "few_shot": "with examples",
        "elicited": "elicited"}  # fmt: skip


def stage_table(record: BootstrapRecord) -> Table:
    """One row per attempt of a stage with its gate."""
    columns = (
        Column("phase"), Column("learns"), Column("right [95% CI]", True), Column("n", True),
        Column("gate: lower bound", True), Column("needs", True), Column("steps", True),
        Column("replay", True), Column("gate"),
    )  # fmt: skip
    rows = tuple(
        (
            attempt.phase, attempt.skill or NONE, side(attempt.own), count(attempt.own.n),
            NONE if attempt.share is None else f"≥ {attempt.share:.2f}",
            NONE if attempt.required is None else f"{attempt.required:,} right", count(attempt.steps),
            NONE if attempt.replay is None else f"{attempt.replay:.0%}", GATE[attempt.passed],
        )
        for attempt in record.attempts
    )  # fmt: skip
    note = (
        "The gate compares the lower end of the 95% interval (Wilson), not the share itself: a model of 93% "
        "reaches 95 of 100 in 29% of all trials."
    )
    failed = tuple(
        f"{attempt.phase} did not pass: {'; '.join(attempt.reasons)}."
        for attempt in record.attempts
        if attempt.passed is False and attempt.reasons
    )
    few = [attempt.phase for attempt in record.attempts if (attempt.own.n or FULL) < FULL]
    short = (
        (f"Fewer than {FULL} questions decided {listed(few)}: enough to show, not to rely on.",)
        if few
        else ()
    )
    return Table("Stages", columns, rows, (*failed, *short, note))


def type_table(record: BootstrapRecord) -> Table:
    """Each passed stage by instruction type, with the paired test."""
    rows = tuple(
        _paired_row(f"{attempt.phase} {paired.name}", paired)
        for attempt in _latest(record)
        for paired in attempt.types
    )
    notes = (
        "p: McNemar's paired test on the same questions before and after the stage, adjusted over its types "
        "(Benjamini & Hochberg 1995). h: Cohen's effect size, 0.8 is large.",
    )
    return Table("Instruction types", _paired_columns("stage and type"), rows, notes)


def kept_table(record: BootstrapRecord) -> Table:
    """What every stage left of the earlier ones."""
    rows = tuple(
        (*_paired_row(f"{attempt.phase}: {paired.name}", paired)[:-1], GATE[paired.ok])
        for attempt in _latest(record)
        for paired in attempt.kept
    )
    columns = (*_paired_columns("after stage: earlier one")[:-1], Column("gate"))
    return Table("Earlier stages", columns, rows, ("Before: when that stage passed. After: now.",))


def gap_table(record: BootstrapRecord) -> Table:
    """What the base could do already, asked in several ways."""
    columns = (
        Column("kind"), *(Column(name, True) for name in WAYS.values()), Column("best [95% CI]", True),
        Column("n", True), Column("target", True), Column("gap"),
    )  # fmt: skip
    rows = []
    for name, row in list(mapping(record.base.get("gaps")).items())[:40]:
        gap, n = mapping(row), whole(mapping(row).get("n"))
        right = mapping(gap.get("right"))
        rows.append(
            (
                text(name, 60),
                *(share(_part(number(right.get(way)), n)) for way in WAYS),
                value_with_interval(number(gap.get("baseline")), interval(gap.get("ci95"))), count(n),
                share(number(gap.get("target"))), "proven" if gap.get("open") is True else "not proven",
            )
        )  # fmt: skip
    notes = (
        "The baseline is the best of all ways of asking. A gap is proven where its whole interval lies below "
        "the target.",
    )
    return Table("What the base can do", columns, tuple(rows), notes)


def gain_table(record: BootstrapRecord) -> Table:
    """What training gained, and what to call it."""
    rows = tuple((*_paired_row(gain.name, gain), label or NONE) for gain, label in record.gains)
    notes = (
        "Before: the best way of asking the base. Capability: better than the base in any form; elicitation: "
        "the base could do it in a form that it knows, and now it follows the instruction.",
    )
    return Table("Gains", (*_paired_columns("kind"), Column("what it is")), rows, notes)


def audit_table(record: BootstrapRecord) -> Table | None:
    """What the scorer made of planted answers."""
    audit = mapping(record.base.get("audit"))
    if not audit:
        return None
    cells = [[text(cell, 40) for cell in items(row)] for row in items(audit.get("misjudged"))[:20]]
    rows = tuple((row[0].replace("_", " "), row[2], row[1]) for row in cells if len(row) == 3)
    verdict = "trusted" if audit.get("trusted") is True else "not trusted"
    apart = number(audit.get("twins_told_apart"))
    notes = [f"The scorer is {verdict}."]
    if apart is not None:
        notes.append(f"It tells {apart:.1%} of right answers from a wrong one of the same length.")
    columns = (Column("planted answers"), Column("n", True), Column("misjudged", True))
    return Table("The scorer, audited", columns, rows, tuple(notes))


SHARES = {
    "acceptance": "accepted", "runaway": "runaway", "token_limit": "token limit", "empty": "empty",
    "near_duplicates": "near duplicates", "exact_duplicates": "repeats", "delimiter_leaks": "delimiters",
    "evaluation_rows": "evaluation rows", "different_tasks": "tasks different", "close_tasks": "tasks close",
    "close_by_chance": "close by chance",
}  # fmt: skip


def data_table(record: BootstrapRecord) -> Table:
    """The generated rows of every attempt: how many were kept, and the shares of what went wrong."""
    made = [(attempt.phase, attempt.data) for attempt in record.attempts if attempt.data is not None]
    # A column of zeros says in a note what it says in a column.
    seen = [key for key in SHARES if any(data.shares.get(key) for _, data in made)]
    never = [SHARES[key] for key in SHARES if key not in seen and any(key in data.shares for _, data in made)]
    columns = (
        Column("phase"), Column("generated", True), Column("kept", True),
        *(Column(SHARES[key], True) for key in seen), Column("right before filter", True),
        Column("right after", True),
    )  # fmt: skip
    rows = tuple(
        (
            phase, count(data.n), count(data.kept),
            *(f"{data.shares[key]:.1%}" if key in data.shares else NONE for key in seen),
            *(NONE if value is None else f"{value:.1%}" for value in (data.right_before, data.right_kept)),
        )
        for phase, data in made
    )  # fmt: skip
    notes = (f"None anywhere: {listed(never)}.",) if never else ()
    return Table("Generated rows", columns, rows, notes)


def rejected_table(record: BootstrapRecord) -> Table:
    """Why rows were not kept, the most frequent reasons first."""
    rows = tuple(
        (f"{attempt.phase}: {reason}", count(n), f"{n / attempt.data.n:.1%}" if attempt.data.n else NONE)
        for attempt in _latest(record)
        if attempt.data is not None
        for reason, n in attempt.data.rejected.items()
    )
    columns = (Column("stage and reason"), Column("rows", True), Column("of all", True))
    return Table(
        "Rows that were rejected", columns, rows, ("They are kept in the records, with the reason.",)
    )


def principle_table(record: BootstrapRecord) -> Table | None:
    """Violations of each principle before and after."""
    if record.safety is None:
        return None
    rows = tuple((*_paired_row(paired.name, paired)[:4], _cut(paired)) for paired in record.safety.principles)
    columns = (*_paired_columns("principle")[:4], Column("fewer", True))
    return Table("Violations by principle, share of prompts", columns, rows)


def triple_table(record: BootstrapRecord) -> Table | None:
    """The three numbers that decide together."""
    safety = record.safety
    if safety is None:
        return None
    named = (
        ("violations", safety.violated), ("over-refusal on near-misses", safety.over_refused),
        ("benign accuracy", safety.benign),
    )  # fmt: skip
    rows = tuple(_paired_row(name, paired)[:-1] for name, paired in named)
    verdict = f"Together they {'pass' if safety.passed else 'do not pass'}: {'; '.join(safety.reasons)}."
    notes = (verdict, _pairs_note(safety.pairs), _ungated_note(safety.ungated), _critic_note(safety.critic))
    return Table(
        "Safety: three numbers, never one alone", _paired_columns("what")[:-1], rows,
        tuple(note for note in notes if note),
    )  # fmt: skip


def _ungated_note(pairs: Mapping[str, Any]) -> str:
    n, valid = whole(pairs.get("n")), whole(pairs.get("valid"))
    if not n or valid is None:
        return ""
    return f"If every revision had been preferred over its answer, {valid / n:.0%} of {n:,} would be valid."


def _critic_note(critic: Mapping[str, Any]) -> str:
    n, flagged = whole(critic.get("n")), number(critic.get("precision_flagged"))
    cleared = number(critic.get("precision_cleared"))
    if not n or flagged is None or cleared is None:
        return ""
    return (
        f"The critic gave {n:,} verdicts, {count(whole(critic.get('uncertain')))} of them uncertain; "
        f"{flagged:.0%} of what it flagged violates its principle, {cleared:.0%} of what it cleared "
        "keeps to it."
    )


def _pairs_note(pairs: Mapping[str, Any]) -> str:
    n, valid = whole(pairs.get("n")), whole(pairs.get("valid"))
    if not n or valid is None:
        return ""
    ratio = number(pairs.get("median_length_ratio"))
    others = ", ".join(
        f"{text(reason, 60)} {count(whole(found))}"
        for reason, found in list(mapping(pairs.get("reasons")).items())[:12]
        if reason != "valid"
    )
    told = f"Preference pairs: {valid:,} of {n:,} are valid ({valid / n:.0%})"
    told += f"; the others: {others}" if others else ""
    return told + (f"; median length of chosen over rejected {ratio:.2f}." if ratio is not None else ".")


def cost_table(record: BootstrapRecord) -> Table | None:
    """What the run took."""
    cost = record.cost
    if not cost:
        return None
    price, money = number(cost.get("price_per_hour")), number(cost.get("money"))
    cut, attempts = mapping(cost.get("cut")), whole(cost.get("attempts")) or 0
    rows = [
        ("time at work", duration(number(cost.get("seconds")))),
        ("from beginning to end, pauses included", duration(record.seconds)),
        ("tokens generated", count(number(cost.get("generated")))),
        ("tokens scored", count(number(cost.get("scored")))),
        ("tokens trained", count(number(cost.get("trained")))),
    ]
    if attempts > 1:
        rows += [
            ("times that the run was started", count(attempts)),
            ("of the time: cut short by a kill, a pause or a stop", duration(number(cut.get("seconds")))),
            *(
                (f"of the tokens {name}: cut short", count(number(cut.get(name))))
                for name in ("generated", "scored", "trained")
                if number(cut.get(name))
            ),
        ]
    rows += [
        ("price of an hour", NONE if price is None else f"{price:.2f}"),
        ("money", NONE if money is None else f"{money:.2f}"),
    ]
    kept = tuple(row for row in rows if row[1] != NONE)
    return Table("Cost", (Column("what"), Column("amount", True)), kept)


def side(found: Side) -> str:
    """A share with its interval."""
    return value_with_interval(found.value, found.ci)


def _latest(record: BootstrapRecord) -> tuple[Attempt, ...]:
    """The attempt of every stage that counts: the one that passed, else the last."""
    latest: dict[int, Attempt] = {}
    for attempt in record.attempts:
        if not (known := latest.get(attempt.stage)) or not known.passed:
            latest[attempt.stage] = attempt
    return tuple(latest.values())


def _paired_columns(first: str) -> tuple[Column, ...]:
    return (
        Column(first), Column("before [95% CI]", True), Column("after [95% CI]", True), Column("n", True),
        Column("gained", True), Column("lost", True), Column("p", True), Column("h", True),
    )  # fmt: skip


def _paired_row(name: str, paired: Paired) -> tuple[str, ...]:
    return (
        name, side(paired.before), side(paired.after), count(paired.after.n), count(paired.gained),
        count(paired.lost), p_value(paired.p), NONE if paired.h is None else f"{paired.h:.2f}",
    )  # fmt: skip


def p_value(p: float | None) -> str:
    """`0.031`, `2e-12`, `< 1e-99`."""
    if p is None:
        return NONE
    if p >= 0.001:
        return f"{p:.3f}"
    return f"{p:.0e}" if p > 1e-99 else "< 1e-99"


def _cut(paired: Paired) -> str:
    before, after = paired.before.value, paired.after.value
    return NONE if not before or after is None else f"{1 - after / before:.0%}"


def _part(right: float | None, n: int | None) -> float | None:
    return right / n if right is not None and n else None
