from datetime import UTC, timedelta, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.safety.strip import STATUS_WORDS, WIDTH, quick_glance
from scaler_wizard.specs.cockpit import CockpitPayload, HumanContract, QualityMetrics, ResourceUsage


def payload(**changes: Any) -> CockpitPayload:
    values: dict[str, Any] = {
        "phase": "P2", "status": "running", "slope": 0.02, "accuracy": 0.84, "vibe": 0.75,
        "used": 11.2, "total": 16.0, "left": 8.0, "point": "2026-11-21T20:31:00+00:00",
    } | changes  # fmt: skip
    return CockpitPayload(
        run_id="00000000-0000-4000-8000-000000000000",
        timestamp="2026-11-21T20:00:00+00:00",
        phase=values["phase"],
        status=values["status"],
        quality_metrics=QualityMetrics(
            perplexity=5.0, perplexity_slope=values["slope"], accuracy=values["accuracy"],
            emergent_vibe_score=values["vibe"], context_retention=None, trend="steady", canonical_sentence="",
        ),
        resource_usage=ResourceUsage(
            vram_used_gb=values["used"], vram_total_gb=values["total"], cpu_utilization=0.5,
            estimated_time_left_min=values["left"], tokens_per_sec=None, temperature=None, hybrid_mode=False,
            provider="local",
        ),
        human_contract=HumanContract(
            version="1.0.0", guarantees_met=True, response_window_sec=120, next_decision_point=values["point"]
        ),
        actions=[],
        alerts=[],
        trace_id="t",
        audit={},
    )  # fmt: skip


def test_the_designed_line() -> None:
    expected = "[P2] ok|ppl+0.02|acc 0.84|vibe 0.75|VRAM 11.2/16G|8m left|gate 20:31"
    assert quick_glance(payload()) == expected


def test_missing_values_and_ram() -> None:
    line = quick_glance(
        payload(slope=None, accuracy=None, vibe=None, left=None, point=None), memory_label="RAM"
    )
    assert line == "[P2] ok|ppl -|acc -|vibe -|RAM 11.2/16G|- left|gate -"


def test_gate_in_local_time_or_by_name() -> None:
    zone = timezone(timedelta(hours=-3))
    assert quick_glance(payload(), zone=zone).endswith("gate 17:31")
    assert quick_glance(payload(point="P3")).endswith("gate P3")


def test_time_left_in_three_units() -> None:
    left = {8.2: "9m", 119.0: "119m", 119.5: "2h", 47 * 60.0: "47h", 60 * 60.0: "2d", 1e9: ">99d"}
    for minutes, words in left.items():
        assert f"|{words} left|" in quick_glance(payload(left=minutes))


def test_the_widest_line_still_fits() -> None:
    widest = payload(
        phase="a-very-long-phase", status="paused", slope=-99.94, accuracy=1.0, vibe=1.0, used=1e300,
        total=1e300, left=1e300, point="a-very-long-phase",
    )  # fmt: skip
    line = quick_glance(widest, memory_label="MEMORY")
    assert line == "[a-very] pause|ppl-99.9|acc 1.00|vibe 1.00|MEMO >999/>999G|>99d left|gate a-very"
    assert len(line) == WIDTH


NUMBERS = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))


@given(
    st.text(max_size=40),
    st.sampled_from(sorted(STATUS_WORDS)),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    NUMBERS,
    st.one_of(st.none(), st.text(max_size=40), st.datetimes().map(lambda moment: moment.isoformat())),
    st.text(max_size=9),
)
def test_never_wider_than_80_columns(
    phase: str, status: str, slope: float | None, accuracy: float | None, vibe: float | None,
    used: float, total: float, left: float | None, point: str | None, label: str,
) -> None:  # fmt: skip
    state = payload(
        phase=phase, status=status, slope=slope, accuracy=accuracy, vibe=vibe, used=used, total=total,
        left=left, point=point,
    )  # fmt: skip
    line = quick_glance(state, memory_label=label, zone=UTC)
    assert len(line) <= WIDTH
    assert line.isascii()
    assert line.isprintable()
    assert line.count("|") >= 6
