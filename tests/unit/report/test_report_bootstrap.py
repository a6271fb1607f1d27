"""The page of a bootstrap: every gate with its numbers, whatever someone wrote into the result."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler_wizard.report.bootstrap_record import bootstrap_record, shown_samples
from scaler_wizard.report.page import render
from scaler_wizard.report.plots_bootstrap import (
    principle_chart,
    retention_chart,
    stage_chart,
    type_chart,
)
from scaler_wizard.report.record import load_record
from scaler_wizard.report.sections import sections
from scaler_wizard.report.table import as_text

HOSTILE = '"><script>alert(1)</script> {{ 7*7 }} $\\frac{ \x1b[31m \u202e'
CHARTS = (stage_chart, retention_chart, type_chart, principle_chart)


class Balance(HTMLParser):
    """Every element is closed in order; scripts are counted."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def result_in(run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "result.json").read_text())
    return value


def assert_harmless(run: Path, result: object) -> str:
    (run / "result.json").write_text(json.dumps(result))
    source = render(load_record(run))
    page = Balance(source)
    assert not page.open
    assert not page.scripts
    assert "\x1b" not in source
    assert "\u202e" not in source
    return source


def test_the_record_is_read_as_it_was_written(bootstrap_dir: Path) -> None:
    found = bootstrap_record(load_record(bootstrap_dir))
    assert found is not None
    assert [attempt.stage for attempt in found.passed] == [1, 2, 3, 4, 6]
    first, last = found.attempts[0], found.attempts[4]
    assert (first.correct, first.own.n, first.share, first.required) == (591, 600, 0.95, 581)
    assert [paired.name for paired in last.kept] == ["explicit", "implicit", "make", "evaluate"]
    assert first.data is not None
    assert dict(first.data.rejected) == {"not confident": 12, "samples disagree": 12}
    assert found.safety is not None
    assert found.safety.violated.after.value == pytest.approx(2 / 300)
    assert found.safety.principles[0].name == "answer_only"


def test_the_page_names_what_passed_and_what_did_not(bootstrap_dir: Path) -> None:
    source = assert_harmless(bootstrap_dir, result_in(bootstrap_dir))
    for words in (
        "5 of 6 stages passed their gates.", "P5 did not pass: 466 of 600 right, lower bound 0.742",
        "581 right", "capability", "Preference pairs: 60 of 90 are valid (67%)", "identical 30",
        "The answer says more than was asked for.", "revision by answer_only",
        "P1: samples disagree", "None anywhere: runaway",
        "It tells 100.0% of right answers from a wrong one of the same length.",
        "The weakest is sort in revise", "near request, right",
        "97% of what it flagged violates its principle", "4 min 20 s", "6 min 52 s",
    ):  # fmt: skip
        assert words in source, words
    assert "Not in this report" not in source
    assert "RoPE" not in source, "columns that no phase fills are left out"


def test_every_picture_says_what_it_shows(bootstrap_dir: Path) -> None:
    record = load_record(bootstrap_dir)
    for make in CHARTS:
        chart = make(record)
        assert chart is not None
        assert chart.takeaway
        assert "NaN" not in chart.svg
        assert chart.table.rows
        assert all(len(row) == len(chart.table.columns) for row in chart.table.rows)


def test_a_demonstration_with_few_questions_says_so(bootstrap_dir: Path) -> None:
    result = result_in(bootstrap_dir)
    assert "Fewer than 500 questions" not in assert_harmless(bootstrap_dir, result)
    result["stages"][1]["decision"]["n"] = 200
    assert "Fewer than 500 questions decided P2:" in assert_harmless(bootstrap_dir, result)


def test_a_forgotten_stage_is_said(bootstrap_dir: Path) -> None:
    result = result_in(bootstrap_dir)
    for row in result["retention"]:
        if row["skill"] == "explicit" and row["stage"] == 4:
            row["right"] = 78
    (bootstrap_dir / "result.json").write_text(json.dumps(result))
    chart = retention_chart(load_record(bootstrap_dir))
    assert chart is not None
    assert chart.takeaway == "The largest loss is in explicit: from 0.99 at its best to 0.13 at the end."


def test_tables_are_readable_as_text(bootstrap_dir: Path) -> None:
    for section in sections(load_record(bootstrap_dir)):
        for table in section.tables:
            assert table.caption
            assert "\n" in as_text(table, 140)


def test_what_was_cut_short_is_shown_where_anything_was(bootstrap_dir: Path) -> None:
    def cost() -> str:
        (found,) = (section for section in sections(load_record(bootstrap_dir)) if section.key == "cost")
        return "\n".join(as_text(table) for table in found.tables)

    assert "1 min 15 s" in cost()
    assert "20,000" in cost()
    result = result_in(bootstrap_dir)
    result["cost"]["attempts"] = 1
    (bootstrap_dir / "result.json").write_text(json.dumps(result))
    assert "cut short" not in cost()


def test_other_recipes_have_none_of_it(run_dir: Path) -> None:
    record = load_record(run_dir)
    assert bootstrap_record(record) is None
    assert sections(record) == ()
    assert not any(make(record) for make in CHARTS)


def test_nothing_trained_is_said(bootstrap_dir: Path) -> None:
    result = result_in(bootstrap_dir)
    result |= {"stages": [], "passed": [], "gains": []}
    result["base"]["train"] = False
    source = assert_harmless(bootstrap_dir, result)
    assert "Nothing was trained: there is no proven gap to close." in source


def test_long_samples_are_cut_to_a_few(bootstrap_dir: Path) -> None:
    result = result_in(bootstrap_dir)
    for stage in result["stages"][:5]:
        stage["samples"][stage["skill"]] *= 200
    (bootstrap_dir / "result.json").write_text(json.dumps(result))
    assert len(shown_samples(load_record(bootstrap_dir))) < 40


def poisoned(value: Any) -> Any:
    if isinstance(value, str):
        return HOSTILE + value
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {HOSTILE[:30] + key if "_" in key else key: poisoned(item) for key, item in value.items()}
    return value


def test_no_text_of_a_bootstrap_can_become_markup(bootstrap_dir: Path) -> None:
    result = poisoned(result_in(bootstrap_dir)) | {"recipe": "bootstrap"}
    assert "alert(1)" in assert_harmless(bootstrap_dir, result)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_bootstrap_with_any_part_replaced_still_gives_a_page(
    bootstrap_dir: Path, data: st.DataObject
) -> None:
    # Examples share the directory, and each writes its result over the one before.
    original = bootstrap_dir / "original.json"
    if not original.exists():
        original.write_text(json.dumps(result_in(bootstrap_dir)), encoding="utf-8")
    changed = json.loads(original.read_text(encoding="utf-8"))
    changed = {key: changed[key] for key in ("recipe", "base", "stages", "gains", "retention", "cost")}
    target: Any = changed
    while True:
        key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
        if isinstance(target[key], dict | list) and target[key] and data.draw(st.integers(0, 4)):
            target = target[key]
            continue
        target[key] = data.draw(json_values)
        break
    (bootstrap_dir / "result.json").write_text(json.dumps(changed))
    assert not Balance(render(load_record(bootstrap_dir))).open
