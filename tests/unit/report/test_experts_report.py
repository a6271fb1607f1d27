"""The report of an experts run: its tables and pictures from a result, and from a hostile one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.report.page import write_report
from scaler_wizard.report.plots_experts import abstention_chart, confusion_chart, settings_chart
from scaler_wizard.report.record import load_record
from scaler_wizard.report.sections import sections
from scaler_wizard.store.rundir import RunDir


def share(value: float, n: int = 400) -> dict[str, Any]:
    return {"value": value, "right": round(value * n), "n": n, "ci95": [value - 0.02, min(1.0, value + 0.02)]}


def result() -> dict[str, Any]:
    compared = {"routed_gained": 40, "routed_lost": 3, "p_value": 1e-7}
    settings = {
        "routed": {"words": "the router's choice", **share(0.95)},
        "oracle": {"words": "always the right expert", **share(0.96), **compared},
        "multitask": {"words": "one adapter for all", **share(0.86), **compared},
    }
    routing = {
        "accuracy": share(0.99), "by_label": {"zoo": share(0.98), "crew": share(1.0)},
        "confusion": [[297, 3], [0, 300]], "calibration_error": 0.012,
        "abstention": [
            {"threshold": 0.0, "coverage": 1.0, "answered": share(0.99)},
            {"threshold": 0.9, "coverage": 0.8, "answered": share(0.998)},
            {"threshold": 0.99, "coverage": 0.0, "answered": {"value": 0.0, "n": 0}},
        ],
        "seeds": {"values": [0.99] * 5, "mean": 0.99, "lowest": 0.985, "highest": 0.992},
    }  # fmt: skip
    ladder = [
        {"step": "probe", "val_accuracy": 0.99, "val_rows": 160, "steps": 0, "threshold": 0.4},
        {"step": "alora", "val_accuracy": 0.98, "val_rows": 160, "steps": 60,
         "settings": {"rank": 2, "learning_rate": 1e-4, "reasons": {"rank": "by rows"}}},
    ]  # fmt: skip
    return {
        "recipe": "experts",
        "experts": {
            "labels": ["zoo", "crew"], "ladder": ladder,
            "chosen": {**ladder[0], "threshold_reason": "99% right"},
            "routing": routing, "end_to_end": {"settings": settings, "of_oracle": 0.9896},
            "work": {"routed": {"prefills": 1.0, "decode_steps": 7.5}},
            "adapters": {"experts/zoo": {"rows": 900, "steps": 120, "loss": 0.5, "sha256": "a" * 64}},
            "decision": {"promoted": True, "reasons": ["0.95 right with the router"]},
        },
    }  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir.create(tmp_path / "experts-0001", "experts")
    made.write_result(result())
    return made


def test_the_page_shows_choices_numbers_confusion_and_work(run_dir: RunDir) -> None:
    page = write_report(run_dir.path).read_text(encoding="utf-8")
    for words in (
        "probe (chosen)", "rank: by rows", "99% right", "Where inputs were sent", "3 of 600", "+40 -3",
        "one adapter for all", "reaches 99.0%", "promoted: 0.95 right", "router decode steps", "experts/zoo",
        "Over 5 seeds",
    ):  # fmt: skip
        assert words in page, words


def test_pictures_hold_the_same_data_as_tables(run_dir: RunDir) -> None:
    record = load_record(run_dir.path)
    confusion, settings = confusion_chart(record), settings_chart(record)
    assert confusion is not None
    assert settings is not None
    assert confusion.table.rows == (("zoo", "297", "3"), ("crew", "0", "300"))
    assert "297" in confusion.svg
    abstention = abstention_chart(record)
    assert abstention is not None
    assert (
        abstention.takeaway == "With 100% routed, 99.0% are right. Its confidence is off by 0.012 on average."
    )
    assert len(abstention.table.rows) == 3
    assert settings.takeaway == "Most right answers: always the right expert, 0.960."


@pytest.mark.parametrize("value", [7, [], {"labels": 7}, {"labels": ["a"], "routing": {"confusion": "x"}},
    {"routing": {"abstention": [1, {"coverage": "x"}, {"threshold": 0, "coverage": 9, "answered": {}}]}},
    {"labels": ["a", "b"], "routing": {"confusion": [[1], ["x"]]}, "end_to_end": {"settings": {"a": 3}}},
    {"ladder": [1, {"settings": []}], "work": {"a": 1}, "adapters": [], "decision": "yes"}])  # fmt: skip
def test_a_hostile_result_shows_less_and_breaks_nothing(run_dir: RunDir, value: object) -> None:
    run_dir.write_result({"recipe": "experts", "experts": value})
    assert "<html" in write_report(run_dir.path).read_text(encoding="utf-8")
    assert all(table.rows for section in sections(load_record(run_dir.path)) for table in section.tables)


def test_other_recipes_have_none_of_it(run_dir: RunDir) -> None:
    run_dir.write_result(json.loads('{"recipe": "grow"}'))
    assert not sections(load_record(run_dir.path))
