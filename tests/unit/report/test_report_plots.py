from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from scaler_wizard.report.plots import Chart, candidates_chart, needle_chart, nll_chart
from scaler_wizard.report.plots_course import MAX_POINTS, loss_chart, memory_chart, quality_chart
from scaler_wizard.report.record import Record, load_record
from scaler_wizard.report.svg import INK, label
from scaler_wizard.specs.events import StepDone

ALL = (nll_chart, needle_chart, candidates_chart, loss_chart, memory_chart, quality_chart)


@pytest.fixture
def record(run_dir: Path) -> Record:
    return load_record(run_dir)


def drawn(chart: Chart | None) -> tuple[Chart, str]:
    """The chart, and the words in its picture."""
    assert chart is not None
    words = " ".join(ElementTree.fromstring(chart.svg).itertext())
    return chart, re.sub(r"\s+", " ", words)


@pytest.mark.parametrize("make", ALL)
def test_every_chart_is_a_themed_picture_with_words_for_those_who_cannot_see_it(
    make: Callable[[Record], Chart | None], record: Record
) -> None:
    chart, words = drawn(make(record))
    assert chart.takeaway.endswith(".")
    assert len(chart.description) > 60
    assert chart.table.rows
    assert all(len(row) == len(chart.table.columns) for row in chart.table.rows)
    assert not any(stand_in in chart.svg for stand_in in vars(INK).values())
    colours = set(re.findall(r"(?:fill|stroke): (?!none)([^;\"]+)", chart.svg))
    assert colours <= {f"var(--{name})" for name in vars(INK)}
    assert "<metadata" not in chart.svg
    assert "http" not in chart.svg
    assert words.strip()


@pytest.mark.parametrize("make", ALL)
def test_a_run_without_data_has_no_chart(make: Callable[[Record], Chart | None], tmp_path: Path) -> None:
    assert make(load_record(tmp_path)) is None


def test_axes_carry_names_and_units(record: Record) -> None:
    wanted = {
        nll_chart: [
            "position in the document (tokens)",
            "loss (nats per token)",
            "base window 128",
            "target 512",
        ],
        needle_chart: [
            "depth of the needle",
            "needles found (share)",
            "512 tokens",
            "chance",
            "cut to base window",
        ],
        candidates_chart: ["nats per token, ± 2 SE", "needles found", "P3 yarn ▸", "allowed rise 0.050"],
        loss_chart: [
            "optimiser step",
            "training loss (nats per token)",
            "P2 passed untrained",
            "breaker spoke",
        ],
        memory_chart: ["memory (GiB)", "predicted (band: error)", "limit 10.80 GiB, far above"],
        quality_chart: ["perplexity", "lower is better", "share, higher is better", "phase"],
    }
    for make, texts in wanted.items():
        _, words = drawn(make(record))
        for expected in texts:
            assert expected in words


def test_a_memory_limit_in_reach_is_drawn(record: Record) -> None:
    memory = dict(record.result["memory"]) | {"limit_bytes": 600 * 2**20}
    chart, words = drawn(
        memory_chart(dataclasses.replace(record, result=dict(record.result) | {"memory": memory}))
    )
    assert "limit (90%)" in words
    assert "84% of the limit of 0.59 GiB" in chart.takeaway


def test_the_loss_chart_counts_steps_once_and_stays_small(record: Record) -> None:
    def step(at: int, loss: float) -> StepDone:
        return StepDone(
            phase="P1", step=at, total_steps=9, loss=loss, grad_norm=1, learning_rate=1, tokens=1, seconds=1
        )

    resumed = [step(at, 5.0) for at in range(1, 4)] + [step(at, 2.0) for at in range(2, 5)]
    chart, _ = drawn(loss_chart(dataclasses.replace(record, events=tuple(resumed))))
    assert chart.table.rows[0] == ("P1", "4", "3.500", "2.000")
    long = tuple(step(at, 2.0 + 1 / at) for at in range(1, 20 * MAX_POINTS))
    chart, _ = drawn(loss_chart(dataclasses.replace(record, events=long)))
    assert len(chart.svg) < 100_000


def test_coordinates_do_not_depend_on_hostile_names(run_dir: Path) -> None:
    result = json.loads((run_dir / "result.json").read_text())
    for rows in result["candidates"].values():
        rows[0]["method"] = "$\\frac{<b>長😀"
    (run_dir / "result.json").write_text(json.dumps(result))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, words = drawn(candidates_chart(load_record(run_dir)))
    assert "$\\frac{<b>??" in words


def test_drawing_leaves_the_processes_settings_alone(record: Record) -> None:
    before = dict(mpl.rcParams)
    nll_chart(record)
    assert dict(mpl.rcParams) == before


def test_labels_are_short() -> None:
    assert label("x" * 30, 8) == "xxxxxxx…"
    assert label("a\nb") == "a?b"
