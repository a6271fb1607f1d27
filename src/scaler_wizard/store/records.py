"""What the queries return: frozen rows of the state database. No database library in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from scaler_wizard.store.states import Command, RunStatus

PhaseStatus = Literal["running", "done", "failed", "rolled_back"]
GateAction = Literal["approve", "abort", "rollback", "pause"]
VersionStatus = Literal["current", "superseded", "held", "deleted"]
"""held: trained, but worse than the one before with confidence; it is kept and not gone on from."""
ModelKind = Literal["base", "adapter", "merged", "tokenizer"]


@dataclass(frozen=True)
class NewRun:
    """What is needed to queue a run."""

    id: str
    uuid: str
    name: str
    recipe: str
    job: Mapping[str, Any]
    job_hash: str
    contract_hash: str | None = None
    priority: int = 0
    """Higher ones start first."""
    not_before: float = 0.0
    """Unix time before which it does not start."""
    dedup_key: str | None = None
    """What makes two jobs the same one (the hash of a dropped file); None where nothing does."""
    lineage: str | None = None
    """The model lineage it continues: such runs follow each other."""


@dataclass(frozen=True)
class Run:
    """One run."""

    id: str
    uuid: str
    name: str
    recipe: str
    status: RunStatus
    phase: str | None
    priority: int
    not_before: float
    job: Mapping[str, Any]
    job_hash: str
    contract_hash: str | None
    created: float
    updated: float
    host: str | None
    host_pid: int | None
    host_boot_id: str | None
    error: str | None
    advice: str | None
    dedup_key: str | None = None
    lineage: str | None = None
    retries: int = 0
    """Times it was queued again after it had failed."""


@dataclass(frozen=True)
class Host:
    """The process that looks after a run."""

    name: str
    pid: int
    boot_id: str


@dataclass(frozen=True)
class Attempt:
    """One worker process of a run. `number` is the fencing token: only the newest may write."""

    run_id: str
    number: int
    pid: int | None
    boot_id: str
    started: float
    heartbeat_monotonic: float | None
    """Monotonic clock of boot `boot_id`, in seconds: a wall clock that jumps expires nothing."""
    ended: float | None
    outcome: str | None


@dataclass(frozen=True)
class Phase:
    """One phase of a run."""

    run_id: str
    phase: str
    status: PhaseStatus
    checkpoint: str | None
    started: float | None
    ended: float | None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """A question to a person, and the answer once there is one."""

    id: int
    run_id: str
    gate: str
    sentence: str
    opened: float
    deadline: float
    action: GateAction | None
    by: str | None
    reason: str | None
    answered: float | None
    decision_id: str | None
    target_phase: str | None
    """Where a rollback goes; None for the phase before."""


@dataclass(frozen=True)
class CommandRow:
    """Something a person asked of a run."""

    id: int
    run_id: str
    action: Command
    target_phase: str | None
    reason: str
    created: float
    consumed: float | None


@dataclass(frozen=True)
class RunEvent:
    """One line of a run's history of decisions."""

    id: int
    run_id: str
    time: float
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A model or adapter that this workspace knows."""

    id: int
    name: str
    kind: ModelKind
    path: str
    sha256: str
    run_id: str | None
    parent_id: int | None
    created: float
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Version:
    """One version of a model lineage."""

    id: int
    lineage: str
    number: int
    """Shown as v001, v002..."""
    status: VersionStatus
    path: str
    """Its folder under models/."""
    sha256: str
    """Content hash of the folder."""
    parent_id: int | None
    """The version it was trained from."""
    run_id: str | None
    """The run that made it."""
    description: str
    created: float
    metrics: Mapping[str, Any]
