"""The cockpit payload: one glance at one run. `specs/cockpit_schema.json` is generated from this model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from scaler_wizard.specs.base import Spec

RunStatus = Literal["initializing", "running", "paused", "warning", "stopped", "completed", "failed"]
Action = Literal["approve", "abort", "rollback", "pause", "resume"]
Severity = Literal["info", "warn", "critical"]
Modality = Literal["telegram", "visual", "voice"]
UUID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


class _Camel(Spec):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True)


class QualityMetrics(_Camel):
    """How good the model is now."""

    perplexity: float | None
    """Perplexity of the latest window of training or evaluation tokens."""
    perplexity_slope: float | None
    """Least-squares slope of perplexity per optimiser step over the breaker's window."""
    accuracy: float | None
    """Task accuracy, 0..1, where tasks with exact answers are measured."""
    emergent_vibe_score: float | None
    """Composite of quality against the baseline, 0..1; 0.5 is "as good as before"."""
    context_retention: float | None
    """Needle accuracy beyond the base window relative to within it, 0..1."""
    trend: Literal["improving", "steady", "worsening", "unknown"]
    """Direction of perplexity."""
    canonical_sentence: Annotated[str, Field(max_length=120)]
    """The one sentence that terminal, cockpit and voice all say."""


class ResourceUsage(_Camel):
    """What the run uses of the machine."""

    vram_used_gb: float
    """Accelerator memory in use; process memory (RSS) on a CPU. GiB."""
    vram_total_gb: float
    """Accelerator memory in all; RAM on a CPU. GiB."""
    cpu_utilization: float
    """Share of all cores, 0..1."""
    estimated_time_left_min: float | None
    """Minutes until the run ends, gates not counted."""
    tokens_per_sec: float | None
    """Real (not padded) training tokens per second."""
    temperature: float | None
    """Device temperature in degrees Celsius, where it can be read."""
    hybrid_mode: bool
    """Whether part of the run is elsewhere."""
    provider: str
    """Where it runs: "local" or a provider's name."""


class HumanContract(_Camel):
    """What was promised, and the next decision."""

    version: str
    """Contract version."""
    guarantees_met: bool
    """Whether every guarantee held so far (memory, context factor)."""
    response_window_sec: Annotated[int, Field(ge=30, le=600)]
    """Seconds a gate waits."""
    next_decision_point: str | None
    """The next gate: its phase, or an ISO time while one is open."""


class Alert(_Camel):
    """One thing to notice."""

    severity: Severity
    """How much it matters."""
    modality: Modality
    """How it is said."""
    text: str
    """What it says."""


class CockpitPayload(_Camel):
    """Everything one screen shows of one run."""

    schema_version: Literal["1.0.0"] = "1.0.0"
    """Version of this format."""
    run_id: Annotated[str, Field(pattern=UUID_PATTERN)]
    """The run's UUID."""
    timestamp: str
    """When this was measured: ISO 8601, UTC."""
    phase: str
    """Current phase."""
    status: RunStatus
    """State of the run."""
    quality_metrics: QualityMetrics
    """How good the model is now."""
    resource_usage: ResourceUsage
    """What the run uses of the machine."""
    human_contract: HumanContract
    """What was promised, and the next decision."""
    actions: list[Action]
    """What a person may do now."""
    alerts: list[Alert]
    """Things to notice, most severe first."""
    trace_id: str
    """Identifier that joins this payload with logs."""
    audit: dict[str, Any]
    """Hashes that prove where this came from: contract, last checkpoint, last flight log line."""
    user_feedback: Annotated[str, Field(max_length=500)] | None = None
    """A person's own words about the run."""
