from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.report.record import Metric, load_record
from scaler_wizard.report.values import Interval
from scaler_wizard.report.words import (
    amount,
    duration,
    headline,
    moment,
    needle_takeaway,
    nll_takeaway,
    parameters,
    share,
    size,
    summary,
    verdict,
)


def metric(better: str, before: Interval | None, after: Interval | None) -> Metric:
    middle = [None if ci is None else sum(ci) / 2 for ci in (before, after)]
    return Metric("m", "", middle[0], before, middle[1], after, 9, None, "", better, "")


@pytest.mark.parametrize(
    ("better", "before", "after", "expected"),
    [
        ("higher", (0.1, 0.2), (0.3, 0.4), "better"),
        ("higher", (0.3, 0.4), (0.1, 0.2), "worse"),
        ("lower", (0.3, 0.4), (0.1, 0.2), "better"),
        ("lower", (0.1, 0.2), (0.3, 0.4), "worse"),
        ("higher", (0.1, 0.3), (0.3, 0.4), "same within error"),
        ("", (0.1, 0.2), (0.3, 0.4), ""),
        ("higher", None, (0.3, 0.4), ""),
    ],
)
def test_a_change_counts_only_beyond_both_intervals(
    better: str, before: Interval | None, after: Interval | None, expected: str
) -> None:
    assert verdict(metric(better, before, after)) == expected


def test_a_number_without_an_interval_is_never_called_better() -> None:
    assert (
        verdict(dataclasses.replace(metric("higher", (0.1, 0.2), (0.8, 0.9)), after_ci=None)) == "no interval"
    )


@given(st.floats(-1e18, 1e18))
def test_shown_numbers_stay_near_the_true_ones(value: float) -> None:
    for show in (amount, share):
        read = float(show(value).replace(",", ""))
        assert math.isclose(read, value, rel_tol=0.06, abs_tol=5e-4)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(0.012), "0.01 s"),
        (duration(105.2), "1 min 45 s"),
        (duration(7260), "2 h 1 min"),
        (duration(-1), "–"),
        (size(502 * 2**20), "0.49 GiB"),
        (size(2**20), "1.0 MiB"),
        (parameters(4_212_736), "4.21 million"),
        (parameters(1.5e9), "1.50 billion"),
        (moment(0), "–"),
        (moment(1e300), "–"),
        (moment(1_790_000_000), "2026-09-21 14:13:20 UTC"),
        (amount(16.9), "16.9"),
        (amount(1234567), "1,234,567"),
    ],
)
def test_quantities_read_well(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_target_that_was_missed_is_said_first(run_dir: Path) -> None:
    result = json.loads((run_dir / "result.json").read_text())
    result["effective_context"] = 256
    result["table"][3]["after_ci"] = [0.0, 0.05]
    (run_dir / "result.json").write_text(json.dumps(result))
    record = load_record(run_dir)
    assert headline(record) == "Effective context 256 of 512 tokens requested."
    sentences = summary(record)
    assert "512 tokens were not reached: 256 is the last length that passed its gate." in sentences
    assert "Worse beyond measurement error: task accuracy." in sentences
    assert "Nothing measured got worse beyond its error." not in sentences


def test_takeaways_are_computed_from_the_points(run_dir: Path) -> None:
    record = load_record(run_dir)
    assert needle_takeaway(record) == (
        "At 512 tokens 97% of the needles are found after the run, "
        "7% before and 20% with the prompt cut to the base window."
    )
    points = [point for point in record.nll["after"] if point.x > 128]
    mean = sum(point.value for point in points) / len(points)
    assert f"to {mean:.2f} nats per token" in nll_takeaway(record)
    worse = dataclasses.replace(record, nll={"before": record.nll["after"], "after": record.nll["before"]})
    assert " rose from " in nll_takeaway(worse)
