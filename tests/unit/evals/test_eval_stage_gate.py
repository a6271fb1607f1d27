"""A stage passes on the lower bound of its interval, and only where no earlier stage was forgotten."""

from __future__ import annotations

import json

import pytest

from scaler_wizard.evals.promotion import Change
from scaler_wizard.evals.stage_gate import Kept, decide_stage, next_step, required_successes
from scaler_wizard.evals.statistics import binomial_tail, cohens_h, mcnemar, wilson_lower_bound


def answers(right: int, n: int = 500) -> tuple[bool, ...]:
    return tuple(k < right for k in range(n))


def change(name: str, before: int, after: int, n: int = 500) -> Change:
    return Change(name, answers(before, n), answers(after, n))


@pytest.mark.parametrize(("n", "need"), [(300, 293), (500, 485), (1000, 964)])
def test_what_a_lower_bound_of_95_percent_needs(n: int, need: int) -> None:
    assert required_successes(n, 0.95) == need
    assert wilson_lower_bound(need, n) >= 0.95 > wilson_lower_bound(need - 1, n)


def test_some_numbers_of_questions_can_never_reach_it() -> None:
    assert required_successes(70, 0.95) is None


def test_the_known_answer_of_the_paired_test() -> None:
    """243 against 298 of 300 with 57 gained and 2 lost."""
    found = mcnemar(57, 2)
    assert found.statistic == pytest.approx(49.42, abs=0.005)
    assert found.p_value == pytest.approx(2.06e-12, rel=0.005)
    assert cohens_h(243 / 300, 298 / 300) == pytest.approx(0.74, abs=0.005)


def test_a_point_gate_at_100_questions_would_pass_a_weak_model() -> None:
    """A model of 93% reaches 95 of 100 in 29% of all trials; with the lower bound at 500 in 0.01%."""
    assert binomial_tail(95, 100, 0.93) == pytest.approx(0.291, abs=0.001)
    need = required_successes(500, 0.95)
    assert need is not None
    assert binomial_tail(need, 500, 0.93) < 2e-4
    weak = decide_stage("1", [change("sort", 0, 95, 100)], [], share=0.95, least_n=100)
    assert not weak.passed


def test_a_stage_passes_on_its_lower_bound() -> None:
    assert decide_stage("1", [change("sort", 0, 485)], [], share=0.95).passed
    missed = decide_stage("1", [change("sort", 0, 484)], [], share=0.95)
    assert not missed.passed
    assert missed.weak == ("sort",)
    assert "484 of 500 right" in missed.reasons[0]


def test_too_few_questions_do_not_pass_however_well_they_went() -> None:
    decision = decide_stage("1", [change("sort", 0, 300, 300)], [], share=0.95)
    assert not decision.passed
    assert "at least 500" in decision.reasons[0]


def test_a_stage_that_gained_nothing_does_not_pass() -> None:
    assert not decide_stage("1", [change("sort", 495, 496)], [], share=0.95).passed


def test_the_weak_types_are_named() -> None:
    types = [change("sort", 0, 240, 250), change("add", 0, 120, 250)]
    decision = decide_stage("1", types, [], share=0.9)
    assert decision.weak == ("add",)
    assert all(score.p_adjusted < 1e-20 for score in decision.types)


def test_a_type_that_fell_is_not_hidden_by_the_others() -> None:
    types = [change("sort", 0, 1000, 1000), change("copy", 100, 60, 100)]
    decision = decide_stage("1", types, [], share=0.9)
    assert not decision.passed
    assert "copy fell from 100 to 60" in decision.reasons[0]


def test_an_earlier_stage_that_was_forgotten_blocks() -> None:
    """Training without replay, in a trial: stage 1 fell from 0.91 to 0.13 while stage 2 was learned."""
    kept = [Kept("stage 1", change("stage 1", 455, 65))]
    decision = decide_stage("2", [change("question", 0, 480)], kept, share=0.9)
    assert not decision.passed
    assert (decision.weak, decision.forgotten) == ((), ("stage 1",))
    assert next_step([decision]) == "more_replay"


def test_every_earlier_stage_is_looked_at() -> None:
    kept = [Kept("stage 1", change("stage 1", 480, 479)), Kept("stage 2", change("stage 2", 470, 420))]
    decision = decide_stage("3", [change("make", 0, 490)], kept, share=0.9)
    assert decision.forgotten == ("stage 2",)


def test_an_earlier_stages_own_gate_must_still_hold() -> None:
    """Stage 2 asks for 90% of its own and 95% of stage 1: 483 to 474 of 500 is no fall beyond 2 points."""
    before = change("stage 1", 483, 474)
    eroded = decide_stage("2", [change("question", 0, 480)], [Kept("stage 1", before, share=0.95)], share=0.9)
    assert (eroded.passed, eroded.forgotten, eroded.weak) == (False, ("stage 1",), ())
    assert "fewer than the 95% that its own gate asked for" in eroded.reasons[0]
    assert next_step([eroded]) == "more_replay"
    assert decide_stage("2", [change("question", 0, 480)], [Kept("stage 1", before)], share=0.9).passed


def test_a_stage_that_has_just_met_its_gate_is_not_undone_by_one_answer() -> None:
    """581 of 600 has a lower bound of 0.951 and 580 of 0.949."""
    kept = [Kept("stage 1", change("stage 1", 581, 580, 600), share=0.95)]
    assert wilson_lower_bound(580, 600) < 0.95 < wilson_lower_bound(581, 600)
    assert decide_stage("2", [change("question", 0, 590, 600)], kept, share=0.9).passed


def test_an_earlier_stage_without_questions_is_not_kept() -> None:
    kept = [Kept("stage 1", Change("stage 1", (), ()))]
    assert decide_stage("2", [change("question", 0, 490)], kept, share=0.9).forgotten == ("stage 1",)


def test_a_failed_stage_gets_data_then_replay_then_ends() -> None:
    failed = decide_stage("1", [change("sort", 0, 400)], [], share=0.95)
    assert next_step([failed]) == "more_data"
    assert next_step([failed, failed]) == "more_replay"
    assert next_step([failed, failed, failed]) == "stop"
    passed = decide_stage("1", [change("sort", 0, 490)], [], share=0.95)
    assert next_step([failed, failed, passed]) == "advance"


@pytest.mark.parametrize("most_data", [0, 1, 3])
@pytest.mark.parametrize("most_replay", [0, 1, 2])
def test_trying_again_always_ends(most_data: int, most_replay: int) -> None:
    weak = decide_stage("2", [change("q", 0, 400)], [], share=0.95)
    kept = [Kept("stage 1", change("stage 1", 480, 300))]
    forgot = decide_stage("2", [change("q", 0, 490)], kept, share=0.95)
    for decisions in ([weak], [forgot], [weak, forgot], [forgot, weak]):
        tries = list(decisions)
        while next_step(tries, most_data=most_data, most_replay=most_replay) != "stop":
            tries.append(tries[-1])
            assert len(tries) <= 2 + most_data + most_replay


def test_the_decision_is_ready_for_json() -> None:
    kept = [Kept("stage 1", change("stage 1", 480, 479), share=0.9)]
    decision = decide_stage("2", [change("question", 0, 480)], kept, share=0.9)
    row = json.loads(json.dumps(decision.as_dict()))
    assert row["required"] == required_successes(500, 0.9)
    assert row["kept"][0]["ok"] is True
    assert row["types"][0]["gained"] == 480
