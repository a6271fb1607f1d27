"""What a recipe's report has besides the parts that all share: titled tables, in their order."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Section:
    """A heading with its tables."""

    key: str
    title: str
    tables: tuple[Table, ...]


def sections(record: Record) -> tuple[Section, ...]:
    """The sections of a run's recipe; those without a row are left out."""
    found = bootstrap_record(record)
    if found is None:
        return ()
    named = (
        ("stages", "Gates in numbers", (stage_table(found), kept_table(found))),
        ("gains", "What was gained", (gain_table(found), type_table(found))),
        ("safety", "The constitution", (triple_table(found), principle_table(found))),
        ("data", "What was generated", (data_table(found), rejected_table(found))),
        ("base", "The base, and the scorer", (gap_table(found), audit_table(found))),
        ("cost", "Cost", (cost_table(found),)),
    )
    filled = (
        Section(key, title, tuple(table for table in tables if table is not None and table.rows))
        for key, title, tables in named
    )
    return tuple(section for section in filled if section.tables)
