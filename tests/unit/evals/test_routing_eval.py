"""A router's numbers against hand-made cases, and the decision whether it is worth it."""

from __future__ import annotations

import re

import pytest

from scaler_wizard.evals.routing import calibration_error, over_seeds, score_routing
from scaler_wizard.evals.worth import EndToEnd, InService, Standing, decide_worth

SEEDS = [0.99, 0.985, 0.99, 0.992, 0.988]
FULL = Standing(least_rows=300, accuracies=SEEDS, pace="full")


def test_a_router_is_scored_by_label_and_by_confidence() -> None:
    score = score_routing(
        ["a", "b"], ["a", "a", "a", "b"], [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.05, 0.95]]
    )
    assert (score.accuracy.right, score.accuracy.n) == (3, 4)
    assert score.confusion == ((2, 1), (0, 1))
    assert [share.value for share in score.by_label] == [2 / 3, 1.0]
    low, high = score.accuracy.interval
    assert 0.30 < low < 0.75 < high < 0.96
    by_threshold = {point.threshold: point for point in score.abstention}
    assert by_threshold[0.0].coverage == 1.0
    assert by_threshold[0.7].coverage == 0.75
    assert by_threshold[0.7].answered.value == 1.0
    assert by_threshold[0.99].answered.n == 0


def test_calibration_error_is_the_gap_between_said_and_true() -> None:
    assert calibration_error([0.9] * 10, [True] * 9 + [False]) == pytest.approx(0.0)
    assert calibration_error([0.9] * 10, [True] * 5 + [False] * 5) == pytest.approx(0.4)
    assert calibration_error([1.0, 0.5], [True, True]) == pytest.approx(0.25)


def test_seeds_are_summed_up() -> None:
    found = over_seeds([0.98, 0.99, 1.0])
    assert (found["lowest"], found["highest"], found["n"]) == (0.98, 1.0, 3)


def answers(routed: int, multitask: int, n: int = 400, base: int = 0, oracle: int | None = None) -> EndToEnd:
    def right(count: int) -> tuple[bool, ...]:
        return (True,) * count + (False,) * (n - count)

    return EndToEnd({
        "routed": right(routed), "oracle": right(routed if oracle is None else oracle),
        "multitask": right(multitask), "base": right(base), "majority": right(n // 4),
    })  # fmt: skip


def test_a_router_that_beats_one_adapter_for_all_is_promoted() -> None:
    decision = decide_worth(answers(routed=380, multitask=330), FULL)
    assert decision.promote
    assert not decision.warnings


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (answers(routed=330, multitask=380), "not worth it.*one adapter for all"),
        (answers(routed=380, multitask=380), "not worth it.*one adapter for all"),
        (answers(routed=381, multitask=379), "not worth it.*one adapter for all"),
        (answers(routed=380, multitask=300, base=390), "not worth it.*the base alone"),
        (answers(routed=90, multitask=10), "not worth it.*always the expert with most rows"),
    ],
)
def test_a_router_that_is_not_worth_it_is_held(measured: EndToEnd, words: str) -> None:
    decision = decide_worth(measured, FULL)
    assert not decision.promote
    assert any(re.search(words, reason) for reason in decision.reasons)


@pytest.mark.parametrize(
    ("standing", "words"),
    [
        (Standing(299, SEEDS, "full"), "299 held-out rows"),
        (Standing(300, SEEDS[:4], "full"), "4 seeds"),
        (Standing(300, SEEDS, "fast"), "a trial"),
    ],
)
def test_too_little_was_measured(standing: Standing, words: str) -> None:
    decision = decide_worth(answers(routed=380, multitask=330), standing)
    assert not decision.promote
    assert words in decision.reasons[0]


def test_falling_short_of_the_oracle_and_unsteady_seeds_are_said() -> None:
    unsteady = Standing(300, [0.9, 0.99, 0.99, 0.99, 0.99], "full")
    decision = decide_worth(answers(routed=370, multitask=330, oracle=390), unsteady)
    assert decision.promote
    assert len(decision.warnings) == 2


def in_service(right: int, n: int = 400) -> InService:
    return InService("v003", (True,) * right + (False,) * (n - right))


def test_the_first_version_has_only_the_other_settings_to_beat() -> None:
    measured = answers(routed=380, multitask=330)
    assert decide_worth(measured, FULL, None).promote
    assert "in service" not in decide_worth(measured, FULL, None).reasons[0]


def test_what_is_better_than_the_version_in_service_takes_its_place() -> None:
    decision = decide_worth(answers(routed=380, multitask=330), FULL, in_service(350))
    assert decision.promote
    assert "v003, which is in service 0.875" in decision.reasons[0]


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (in_service(390), "0.950 right with the router, 0.975 with v003, which is in service"),
        (in_service(380), "with v003, which is in service .n 400, p 1"),
        (in_service(377), "0.943 with v003"),
        (InService("v003", (False,) * 400, lost=("crew", "zoo")), "lacks: crew, zoo"),
        (InService("v003", (), refused="another base"), "could not be asked the same: another base"),
    ],
)
def test_what_is_not_better_with_confidence_does_not_replace_it(before: InService, words: str) -> None:
    measured = answers(routed=380, multitask=330)
    decision = decide_worth(measured, FULL, before)
    assert not decision.promote
    assert len(decision.reasons) == 1
    assert re.search(words, decision.reasons[0])
    found = before.as_dict(measured)
    assert ("p_value" in found) is not bool(before.refused)
