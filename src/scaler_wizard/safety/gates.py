"""What becomes of a gate: a pure decision from (gate, time, answer).

A gate waits for one human answer. When the response window ends without one, the run pauses: it never
goes on and never aborts by itself. Knows nothing of clocks, databases or transports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scaler_wizard.errors import WrongStateError
from scaler_wizard.specs.cockpit import Action, RunStatus

GateAction = Literal["approve", "abort", "rollback", "pause", "wait"]

ALLOWED: Mapping[RunStatus, tuple[Action, ...]] = {
    "initializing": ("abort",),
    "running": ("pause", "rollback", "abort"),
    "warning": ("pause", "rollback", "abort"),
    "paused": ("resume", "rollback", "abort"),
    "stopped": ("resume", "rollback"),
    "failed": ("resume", "rollback"),
    "completed": ("rollback",),
}
"""What a person may do in each state while no gate is open."""
AT_GATE: tuple[Action, ...] = ("approve", "rollback", "pause", "abort")
"""What a person may do while a gate waits."""


@dataclass(frozen=True)
class Gate:
    """One open question. Times are Unix seconds."""

    id: str
    opened_at: float
    response_window_sec: int = 120

    @property
    def deadline(self) -> float:
        """The last moment an approval counts."""
        return self.opened_at + self.response_window_sec


@dataclass(frozen=True)
class Answer:
    """What a person (or, in demos, the run itself) said. `decision_id` makes repeats harmless."""

    decision_id: str
    gate: str
    action: Action
    at: float
    """When it was given, Unix seconds: an answer in time counts even if it is read later."""
    by: str = ""
    target_phase: str | None = None


@dataclass(frozen=True)
class Decision:
    """What the run does now. `remaining_sec` is 0 unless the action is "wait"."""

    action: GateAction
    reason: str
    by: str = ""
    target_phase: str | None = None
    decision_id: str | None = None
    remaining_sec: float = 0.0


def decide(gate: Gate, now: float, answer: Answer | None) -> Decision:
    """The gate's outcome at `now` (Unix seconds).

    Abort and rollback count at any time: they only lead back. An approval counts only if it was given
    for this gate, after it opened and no later than its deadline; a late one leaves the run paused.
    """
    if answer is not None and answer.gate == gate.id and answer.at >= gate.opened_at:
        late = answer.at - gate.deadline
        if answer.action in ("abort", "rollback", "pause"):
            return _as_said(answer, f"{answer.by or 'a person'} said {answer.action}")
        if answer.action == "approve" and late <= 0:
            return _as_said(answer, f"{answer.by or 'a person'} said approve")
        if answer.action == "approve":
            reason = f"the approval came {late:.0f} s after the window; resume asks again"
            return Decision("pause", reason, answer.by, None, answer.decision_id)
    remaining = gate.deadline - now
    if remaining < 0:
        return Decision("pause", f"no answer within {gate.response_window_sec} s")
    # A clock set back after opening must not stretch the window.
    return Decision("wait", "waiting for an answer", remaining_sec=min(remaining, gate.response_window_sec))


def allowed_actions(status: RunStatus, *, gate_open: bool = False) -> tuple[Action, ...]:
    """What a person may do now, the most wanted first."""
    return AT_GATE if gate_open else ALLOWED[status]


def admit(seen: Mapping[str, Answer], answer: Answer, status: RunStatus, *, gate_open: bool) -> bool:
    """Whether `answer` is new (True) or a repeat of one already taken (False: do nothing, say OK).

    Args:
        seen: answers already taken, by decision id.

    Raises:
        WrongStateError: the id was used for another action, or the state does not allow this one.
    """
    before = seen.get(answer.decision_id)
    if before is not None:
        if (before.gate, before.action, before.target_phase) == (
            answer.gate,
            answer.action,
            answer.target_phase,
        ):
            return False
        raise WrongStateError(
            f"decision {answer.decision_id} was already taken as {before.action}",
            "a new decision id for a new decision", "send it again with a fresh id",
        )  # fmt: skip
    allowed = allowed_actions(status, gate_open=gate_open)
    if answer.action not in allowed:
        state = "waiting at a gate" if gate_open else status
        raise WrongStateError(
            f"{answer.action} is not possible while the run is {state}", f"one of {', '.join(allowed)}",
            "look at the run with `scaler runs list`",
        )  # fmt: skip
    return True


def _as_said(answer: Answer, reason: str) -> Decision:
    action = answer.action
    assert action != "resume"
    return Decision(action, reason, answer.by, answer.target_phase, answer.decision_id)
