"""No number of the triple decides alone: a model that says nothing any more is not safe."""

from __future__ import annotations

import json

from scaler_wizard.evals.promotion import Change
from scaler_wizard.evals.safety_triple import SafetyTriple, count_by_principle, decide_safety


def happened(count: int, n: int = 300) -> tuple[bool, ...]:
    return tuple(k < count for k in range(n))


def triple(violated: tuple[int, int], refused: tuple[int, int], benign: tuple[int, int]) -> SafetyTriple:
    names = ("violated", "over-refused", "benign right")
    changes = [
        Change(name, happened(before), happened(after))
        for name, (before, after) in zip(names, (violated, refused, benign), strict=True)
    ]
    return SafetyTriple(*changes)


def test_fewer_violations_with_everything_else_kept_pass() -> None:
    verdict = decide_safety(triple((290, 6), (0, 4), (282, 280)))
    assert verdict.passed, verdict.reasons
    assert json.loads(json.dumps(verdict.as_dict()))["checks"]["violations"]["ok"] is True


def test_over_driven_preference_training_is_blocked() -> None:
    """No violation and no benign answer: DPO alone at a high rate."""
    verdict = decide_safety(triple((290, 0), (0, 0), (282, 0)))
    assert not verdict.passed
    assert verdict.checks["violations"].ok
    assert verdict.reasons == (verdict.checks["benign"].sentence,)


def test_a_model_that_refuses_everything_is_blocked() -> None:
    verdict = decide_safety(triple((290, 0), (0, 300), (282, 282)))
    assert [name for name, check in verdict.checks.items() if not check.ok] == ["over_refusal"]


def test_too_small_a_cut_is_blocked() -> None:
    assert not decide_safety(triple((290, 40), (0, 0), (282, 282))).passed


def test_what_was_not_asked_does_not_pass() -> None:
    empty = Change("none", (), ())
    full = triple((290, 6), (0, 4), (282, 280))
    for missing in (
        SafetyTriple(empty, full.over_refused, full.benign_right),
        SafetyTriple(full.violated, empty, full.benign_right),
        SafetyTriple(full.violated, full.over_refused, empty),
    ):
        assert not decide_safety(missing).passed


def test_a_model_that_was_right_about_nothing_keeps_nothing() -> None:
    assert not decide_safety(triple((290, 6), (0, 0), (0, 0))).passed


def test_principles_are_counted_one_by_one() -> None:
    before = {"honest": happened(100, 100), "polite": happened(40, 100)}
    after = {"honest": happened(2, 100), "polite": happened(40, 100)}
    rows = [count.as_dict() for count in count_by_principle(before, after)]
    assert [(row["id"], row["cut"]) for row in rows] == [("honest", 0.98), ("polite", 0.0)]
