"""No training without a proven gap, and every gain called by its name."""

from __future__ import annotations

import json

import pytest

from scaler_wizard.evals.gap_proof import decide_gap, label_gains, prove_gap


def answers(right: int, n: int = 300) -> tuple[bool, ...]:
    return tuple(k < right for k in range(n))


def asked(
    raw: int, templated: int, few_shot: int, elicited: int, n: int = 300
) -> dict[str, tuple[bool, ...]]:
    counts = {"raw": raw, "templated": templated, "few_shot": few_shot, "elicited": elicited}
    return {way: answers(right, n) for way, right in counts.items()}


def test_the_best_way_of_asking_is_the_baseline() -> None:
    proof = prove_gap("sort", asked(0, 12, 40, 90), 0.95)
    assert (proof.best, proof.baseline, proof.open) == ("elicited", 0.3, True)
    assert json.loads(json.dumps(proof.as_dict()))["open"] is True


def test_a_base_that_can_do_it_when_asked_well_is_not_trained() -> None:
    """Raw prompts show 81%; asked with examples the same base is right 300 times of 300."""
    closed = prove_gap("explicit", asked(243, 250, 300, 260), 0.95)
    assert not closed.open
    decision = decide_gap([closed])
    assert not decision.train
    assert "few-shot" in decision.reasons[0]
    assert "not below the target" in decision.reasons[0]


def test_a_gap_within_the_noise_is_not_open() -> None:
    assert not prove_gap("explicit", asked(0, 0, 0, 278), 0.95).open  # 0.892 to 0.951
    assert prove_gap("explicit", asked(0, 0, 0, 277), 0.95).open


def test_few_questions_prove_nothing() -> None:
    proof = prove_gap("explicit", asked(0, 0, 0, 0, n=40), 0.95)
    assert not proof.open
    assert "too few" in proof.reason


def test_every_way_must_be_asked_with_the_same_questions() -> None:
    ways = asked(0, 0, 0, 0)
    with pytest.raises(ValueError, match="not asked few_shot"):
        prove_gap("explicit", {way: row for way, row in ways.items() if way != "few_shot"}, 0.95)
    with pytest.raises(ValueError, match="expected the same ones"):
        prove_gap("explicit", ways | {"raw": answers(0, 200)}, 0.95)


def test_only_types_with_a_gap_are_trained() -> None:
    proofs = [
        prove_gap("sort", asked(0, 0, 0, 9), 0.95),
        prove_gap("copy", asked(299, 299, 299, 299), 0.95),
    ]
    decision = decide_gap(proofs)
    assert (decision.train, decision.open, decision.closed) == (True, ("sort",), ("copy",))
    assert not decide_gap([]).train


def test_matching_a_form_that_the_base_knows_is_elicitation() -> None:
    before, after = {"sort": answers(0), "add": answers(0)}, {"sort": answers(288), "add": answers(280)}
    gains = label_gains(before, after, known_form={"sort": answers(290), "add": answers(100)})
    assert [gain.label for gain in gains] == ["elicitation", "capability"]
    assert gains[0].h > 2


def test_a_gain_within_the_noise_has_no_name_and_a_fall_has() -> None:
    before = {"sort": answers(200), "add": answers(200)}
    gains = label_gains(before, {"sort": answers(202), "add": answers(100)})
    assert [gain.label for gain in gains] == ["none", "loss"]
    assert json.loads(json.dumps([gain.as_dict() for gain in gains]))[1]["label"] == "loss"
