"""The typed event stream of a run: one JSON object a line in `events.jsonl`, append-only.

Everything shown anywhere (terminal, report, cockpit) is a projection of these events. Numbers are
SI or named in the field: tokens, seconds, bytes, nats.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from scaler_wizard.specs.base import Spec


class _Event(Spec):
    time: float = 0.0
    """Unix time in seconds, set by the writer."""
    seq: int = 0
    """Position in the stream, set by the writer."""


class RunStarted(_Event):
    """The worker has begun (again)."""

    type: Literal["run_started"] = "run_started"
    run: str
    attempt: int
    phases: list[str]
    resumed_at: str | None = None
    facts: dict[str, Any] = {}


class Note(_Event):
    """A sentence for the person: a choice made, a number worth knowing."""

    type: Literal["note"] = "note"
    phase: str = ""
    text: str


class PhaseStarted(_Event):
    """A phase begins."""

    type: Literal["phase_started"] = "phase_started"
    phase: str
    title: str


class Progress(_Event):
    """Work inside a phase: `done` of `total` units of one activity (probe, step)."""

    type: Literal["progress"] = "progress"
    phase: str
    activity: str
    done: int
    total: int
    eta_sec: float | None = None
    memory_bytes: int = 0
    generated: int = 0
    """Tokens that this attempt has generated in this phase so far."""
    scored: int = 0
    """Tokens that this attempt has read in this phase to score answers, so far."""


class StepDone(_Event):
    """One optimiser step."""

    type: Literal["step"] = "step"
    phase: str
    step: int
    total_steps: int
    loss: float
    """Mean cross-entropy of the step, nats per trained token."""
    grad_norm: float
    learning_rate: float
    tokens: int
    """Real tokens of the step."""
    seconds: float
    perplexity_slope: float | None = None
    accuracy: float | None = None
    memory_bytes: int = 0
    eta_sec: float | None = None


class ProbeDone(_Event):
    """One measurement: `result` is the probe's own record (value, n, confidence interval, baseline, seed)."""

    type: Literal["probe"] = "probe"
    phase: str
    probe: str
    result: dict[str, Any]


class Telegram(_Event):
    """What the breaker says when it does not say "continue"."""

    type: Literal["telegram"] = "telegram"
    phase: str
    action: Literal["warn", "stop"]
    reason: str
    step: int
    slope: float | None = None


class StepSaved(_Event):
    """A checkpoint inside a training was committed, beside the training."""

    type: Literal["step_saved"] = "step_saved"
    phase: str
    step: int
    checkpoint: str
    bytes: int
    snapshot_seconds: float
    """How long the training stood still for it."""
    write_seconds: float


class PhaseDone(_Event):
    """A phase ended in an evaluation and a committed checkpoint."""

    type: Literal["phase_done"] = "phase_done"
    phase: str
    checkpoint: str
    seconds: float
    metrics: dict[str, Any]
    generated: int = 0
    """Tokens that the attempt which ended the phase generated in it."""
    scored: int = 0
    """Tokens that it read in it to score answers."""


class GateOpened(_Event):
    """A person is asked."""

    type: Literal["gate_opened"] = "gate_opened"
    gate: str
    sentence: Annotated[str, Field(max_length=120)]
    deadline: float
    """Unix time after which the run pauses."""
    details: dict[str, Any] = {}


class GateClosed(_Event):
    """The answer, and who gave it."""

    type: Literal["gate_closed"] = "gate_closed"
    gate: str
    action: str
    by: str
    reason: str = ""
    target_phase: str | None = None


class RolledBack(_Event):
    """The run now stands at an earlier phase."""

    type: Literal["rolled_back"] = "rolled_back"
    phase: str
    checkpoint: str
    seconds: float


class RunEnded(_Event):
    """The worker leaves: completed, paused, stopped (by a person), or failed (breaker, error)."""

    type: Literal["run_ended"] = "run_ended"
    status: Literal["completed", "paused", "stopped", "failed"]
    reason: str = ""
    advice: str = ""
    result: dict[str, Any] = {}


Event = Annotated[
    RunStarted | Note | PhaseStarted | Progress | StepDone | ProbeDone | Telegram | StepSaved | PhaseDone
    | GateOpened | GateClosed | RolledBack | RunEnded,
    Field(discriminator="type"),
]  # fmt: skip
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
