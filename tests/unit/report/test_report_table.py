from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from scaler_wizard.report.record import metrics_of
from scaler_wizard.report.table import Column, Table, as_text, format_table, metric_table

widest = st.one_of(st.none(), st.floats(-1e18, 1e18))
names = st.text(min_size=1, max_size=120)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "metric": names, "unit": st.text(max_size=20), "before": widest, "after": widest, "n": widest,
            "note": names, "before_ci": st.lists(widest, min_size=2, max_size=2),
            "after_ci": st.lists(widest, min_size=2, max_size=2),
            "baseline": widest, "baseline_name": names, "better": st.sampled_from(["higher", "lower", ""]),
        }
    ),
    max_size=4,
)  # fmt: skip


@given(rows)
def test_a_terminal_table_is_narrow_and_harmless_whatever_it_holds(table: list[dict[str, Any]]) -> None:
    shown = format_table({"table": table, "seed": 3})
    assert all(cell_len(line) <= 100 for line in shown.split("\n"))
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_the_terminal_table_says_what_the_page_says(result: dict[str, Any]) -> None:
    shown = format_table(result)
    lines = shown.split("\n")
    task = next(line for line in lines if line.startswith("task accuracy"))
    assert re.split(r"\s{2,}", task) == [
        "task accuracy", "0.120 [0.080, 0.170]", "0.660 [0.590, 0.720]", "200", "0.090", "better",
    ]  # fmt: skip
    assert "Baseline of needle accuracy at 512: truncated to the base window." in lines
    assert "do not overlap; seed 0." in shown
    table = metric_table(metrics_of(result), 0)
    for note in table.notes:
        assert note.split(":")[0] in shown


def test_nothing_to_compare_is_said() -> None:
    assert format_table({}) == "No measurement to compare yet."


def test_numeric_columns_are_flush_right_and_wide_characters_counted() -> None:
    table = Table("t", (Column("name"), Column("n", True)), (("長い名前", "7"), ("b", "1,000")))
    assert as_text(table).split("\n")[2:] == ["長い名前          7", "b             1,000"]
