import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler_wizard.errors import WrongStateError
from scaler_wizard.safety.gates import ALLOWED, AT_GATE, Answer, Gate, admit, allowed_actions, decide

GATE = Gate("g2", opened_at=1000.0, response_window_sec=120)


def answer(action: str, at: float = 1010.0, **changes: object) -> Answer:
    fields: dict[str, object] = {"decision_id": "d1", "gate": "g2", "action": action, "at": at, "by": "Ada"}
    return Answer(**(fields | changes))  # type: ignore[arg-type]


def test_waits_then_pauses() -> None:
    assert decide(GATE, 1000.0, None).action == "wait"
    assert decide(GATE, 1030.0, None).remaining_sec == 90
    assert decide(GATE, 1120.0, None).action == "wait"
    late = decide(GATE, 1120.1, None)
    assert late.action == "pause"
    assert "120" in late.reason


@pytest.mark.parametrize("action", ["approve", "abort", "rollback", "pause"])
def test_an_answer_in_time_counts_even_if_read_late(action: str) -> None:
    decision = decide(GATE, 5000.0, answer(action, at=1120.0, target_phase="P1"))
    assert (decision.action, decision.target_phase, decision.by) == (action, "P1", "Ada")
    assert decision.decision_id == "d1"


def test_late_approval_pauses_late_retreat_counts() -> None:
    assert decide(GATE, 1125.0, answer("approve", at=1121.0)).action == "pause"
    assert decide(GATE, 1125.0, answer("abort", at=1121.0)).action == "abort"
    assert decide(GATE, 1125.0, answer("rollback", at=1121.0)).action == "rollback"


def test_answers_to_another_gate_or_from_before_it_opened_are_not_answers() -> None:
    assert decide(GATE, 1010.0, answer("approve", gate="g1")).action == "wait"
    assert decide(GATE, 1010.0, answer("approve", at=999.0)).action == "wait"
    assert decide(GATE, 1010.0, answer("resume")).action == "wait"


def test_a_clock_set_back_does_not_stretch_the_window() -> None:
    assert decide(GATE, 10.0, None).remaining_sec == 120


@given(
    st.floats(0, 1e6),
    st.one_of(
        st.none(), st.tuples(st.sampled_from(["approve", "abort", "pause", "resume"]), st.floats(0, 1e6))
    ),
)
def test_never_goes_on_and_never_aborts_by_itself(now: float, said: tuple[str, float] | None) -> None:
    decision = decide(GATE, now, None if said is None else answer(said[0], at=said[1]))
    if decision.action == "approve":
        assert said is not None
        assert said[0] == "approve"
        assert GATE.opened_at <= said[1] <= GATE.deadline
    if decision.action == "abort":
        assert said is not None
        assert said[0] == "abort"
    if now > GATE.deadline:
        assert decision.action != "wait"


def test_repeats_are_harmless_and_conflicts_refused() -> None:
    first = answer("approve")
    assert admit({}, first, "running", gate_open=True)
    assert not admit({"d1": first}, answer("approve", at=1500.0), "running", gate_open=False)
    with pytest.raises(WrongStateError, match="already taken as approve"):
        admit({"d1": first}, answer("abort"), "running", gate_open=True)
    with pytest.raises(WrongStateError, match="already taken"):
        admit({"d1": first}, answer("approve", target_phase="P1"), "running", gate_open=True)


def test_actions_by_state() -> None:
    assert allowed_actions("running", gate_open=True) == AT_GATE
    assert "approve" not in {action for actions in ALLOWED.values() for action in actions}
    assert allowed_actions("completed") == ("rollback",)
    with pytest.raises(WrongStateError, match="approve is not possible while the run is running"):
        admit({}, answer("approve"), "running", gate_open=False)
    with pytest.raises(WrongStateError, match="resume is not possible while the run is waiting at a gate"):
        admit({}, answer("resume"), "running", gate_open=True)
