"""Tables of an `experts` run: the ladder, the routing, what was answered in every setting, the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaler_wizard.report.record import Record
from scaler_wizard.report.table import Column, Table
from scaler_wizard.report.values import interval, items, mapping, number, text, whole
from scaler_wizard.report.words import NONE, amount, count, share, value_with_interval

WORK = (
    "vision_encodes", "prefills", "prefilled_tokens", "router_forwards", "router_tokens",
    "router_decode_steps", "expert_prefills", "expert_tokens", "decode_steps",
)  # fmt: skip
LABEL = 40


def experts_of(record: Record) -> Mapping[str, Any]:
    """What the result says of experts; nothing where the run is of another recipe, or has no result."""
    return mapping(record.result.get("experts"))


def labels_of(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels of the experts."""
    return tuple(name for item in items(found.get("labels")) if (name := text(item, LABEL)))


def ladder_table(found: Mapping[str, Any]) -> Table | None:
    """Every kind of router that was tried, and which one was kept."""
    chosen = text(mapping(found.get("chosen")).get("step"), 20)
    rows = []
    for entry in map(mapping, items(found.get("ladder"))):
        step = text(entry.get("step"), 20)
        settings = mapping(entry.get("settings"))
        rows.append((
            step + (" (chosen)" if step == chosen else ""), share(number(entry.get("val_accuracy"))),
            count(whole(entry.get("val_rows"))), count(whole(entry.get("steps"))),
            count(whole(settings.get("rank"))), amount(number(settings.get("learning_rate"))),
            amount(number(entry.get("temperature"))), amount(number(entry.get("threshold"))),
            amount(number(entry.get("cpu_seconds"))),
        ))  # fmt: skip
    columns = (
        Column("router"), Column("val rows right", True), Column("n", True), Column("steps", True),
        Column("rank", True), Column("learning rate", True), Column("temperature", True),
        Column("abstains below", True), Column("CPU s", True),
    )  # fmt: skip
    notes = [text(mapping(found.get("chosen")).get("threshold_reason"), 200)]
    for entry in map(mapping, items(found.get("ladder"))):
        reasons = mapping(mapping(entry.get("settings")).get("reasons"))
        notes += [
            f"{text(entry.get('step'), 20)}, {text(key, 30)}: {text(why, 160)}"
            for key, why in reasons.items()
        ]
    return Table("Routers that were tried", columns, tuple(rows), tuple(note for note in notes if note)[:24])


def routing_table(found: Mapping[str, Any]) -> Table | None:
    """Where held-out inputs were sent, by expert, and over seeds."""
    routing = mapping(found.get("routing"))
    if not routing:
        return None
    shares = mapping(routing.get("by_label"))
    rows = [_share_row("all", mapping(routing.get("accuracy")))]
    rows += [_share_row(text(label, LABEL), mapping(side)) for label, side in list(shares.items())[:64]]
    seeds = mapping(routing.get("seeds"))
    notes = (
        f"Over {len(items(seeds.get('values')))} seeds: mean {share(number(seeds.get('mean')))}, from "
        f"{share(number(seeds.get('lowest')))} to {share(number(seeds.get('highest')))}.",
        f"Expected calibration error: {amount(number(routing.get('calibration_error')))}.",
    )
    columns = (Column("expert"), Column("sent to it [95% CI]", True), Column("n", True))
    return Table("Held-out inputs sent to their own expert", columns, tuple(rows), notes)


def abstention_table(found: Mapping[str, Any]) -> Table | None:
    """What a threshold would answer, and how well."""
    rows = []
    for point in map(mapping, items(mapping(found.get("routing")).get("abstention"))):
        answered = mapping(point.get("answered"))
        rows.append((
            amount(number(point.get("threshold"))), share(number(point.get("coverage"))),
            share(number(answered.get("value"))), count(whole(answered.get("n"))),
        ))  # fmt: skip
    columns = (
        Column("abstain below", True),
        Column("routed", True),
        Column("of these right", True),
        Column("n", True),
    )
    return Table("Abstention", columns, tuple(rows))


def answers_table(found: Mapping[str, Any]) -> Table | None:
    """The same held-out inputs answered in every setting."""
    settings = mapping(mapping(found.get("end_to_end")).get("settings"))
    rows = []
    for side in map(mapping, settings.values()):
        p_value = number(side.get("p_value"))
        gained, lost = whole(side.get("routed_gained")), whole(side.get("routed_lost"))
        rows.append((
            text(side.get("words"), 60), _interval(side), count(whole(side.get("n"))),
            NONE if gained is None else f"+{gained} -{lost}", NONE if p_value is None else f"{p_value:.2g}",
        ))  # fmt: skip
    columns = (
        Column("who answers"), Column("right [95% CI]", True), Column("n", True),
        Column("the router's choice won, lost", True), Column("p", True),
    )  # fmt: skip
    decision = mapping(found.get("decision"))
    said = "promoted" if decision.get("promoted") is True else "held"
    notes = tuple(f"{said}: {text(reason, 300)}." for reason in items(decision.get("reasons"))[:8])
    of_oracle = number(mapping(found.get("end_to_end")).get("of_oracle"))
    reached = (
        () if of_oracle is None else (f"The router's choice reaches {of_oracle:.1%} of the right expert's.",)
    )
    return Table("Answers from end to end", columns, tuple(rows), (*reached, *notes))


def work_table(found: Mapping[str, Any]) -> Table | None:
    """Passes and tokens for one input, by setting."""
    work = {text(name, 20): mapping(side) for name, side in mapping(found.get("work")).items()}
    names = list(work)[:8]
    rows = tuple(
        (key.replace("_", " "), *(amount(number(work[name].get(key))) for name in names)) for key in WORK
    )
    return Table(
        "Work for one input",
        (Column("count"), *(Column(name, True) for name in names)),
        rows if names else (),
    )


def adapter_table(found: Mapping[str, Any]) -> Table | None:
    """Adapters that the run trained."""
    rows = tuple(
        (
            text(name, 80), count(whole(side.get("rows"))), count(whole(side.get("steps"))),
            amount(number(side.get("loss"))), text(side.get("sha256"), 12),
        )
        for name, side in ((name, mapping(side)) for name, side in mapping(found.get("adapters")).items())
    )  # fmt: skip
    columns = (
        Column("adapter"), Column("rows", True), Column("steps", True), Column("last loss", True),
        Column("content"),
    )  # fmt: skip
    return Table("Adapters trained here", columns, rows)


def _share_row(name: str, side: Mapping[str, Any]) -> tuple[str, str, str]:
    return name, _interval(side), count(whole(side.get("n")))


def _interval(side: Mapping[str, Any]) -> str:
    return value_with_interval(number(side.get("value")), interval(side.get("ci95")))
