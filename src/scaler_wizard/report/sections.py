"""What a recipe's report has besides the parts that all share: titled tables, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from scaler_wizard.report.bootstrap_record import bootstrap_record
from scaler_wizard.report.record import Record
from scaler_wizard.report.table import Table
from scaler_wizard.report.tables_bootstrap import (
    audit_table,
    cost_table,
    data_table,
    gain_table,
    gap_table,
    kept_table,
    principle_table,
    rejected_table,
    stage_table,
    triple_table,
    type_table,
)
from scaler_wizard.report.tables_experts import (
    abstention_table,
    adapter_table,
    answers_table,
    experts_of,
    ladder_table,
    routing_table,
    work_table,
)

Named: TypeAlias = tuple[tuple[str, str, tuple[Table | None, ...]], ...]


@dataclass(frozen=True)
class Section:
    """A heading with its tables."""

    key: str
    title: str
    tables: tuple[Table, ...]


def sections(record: Record) -> tuple[Section, ...]:
    """The sections of a run's recipe; those without a row are left out."""
    named = _bootstrap(record) or _experts(record)
    filled = (
        Section(key, title, tuple(table for table in tables if table is not None and table.rows))
        for key, title, tables in named
    )
    return tuple(section for section in filled if section.tables)


def _experts(record: Record) -> Named:
    found = experts_of(record)
    return (
        ("answers", "Is the router worth it", (answers_table(found),)),
        ("routing", "Routing", (ladder_table(found), routing_table(found), abstention_table(found))),
        ("work", "Work", (work_table(found), adapter_table(found))),
    ) if found else ()  # fmt: skip


def _bootstrap(record: Record) -> Named:
    found = bootstrap_record(record)
    if found is None:
        return ()
    return (
        ("stages", "Gates in numbers", (stage_table(found), kept_table(found))),
        ("gains", "What was gained", (gain_table(found), type_table(found))),
        ("safety", "The constitution", (triple_table(found), principle_table(found))),
        ("data", "What was generated", (data_table(found), rejected_table(found))),
        ("base", "The base, and the scorer", (gap_table(found), audit_table(found))),
        ("cost", "Cost", (cost_table(found),)),
    )
