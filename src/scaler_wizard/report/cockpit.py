"""The cockpit payload as a fold over the event stream.

`apply` takes one event after another; `payload` is the picture at that moment. Used by the worker
(payload file), by `scaler watch` and by anything that reads a run directory.
"""

from __future__ import annotations

import math
import os
import uuid
from collections import deque
from datetime import UTC, datetime
from typing import Any

from scaler_wizard.safety.quality import emergent_vibe_score, trend
from scaler_wizard.specs.cockpit import (
    Action,
    Alert,
    CockpitPayload,
    HumanContract,
    QualityMetrics,
    ResourceUsage,
    RunStatus,
)
from scaler_wizard.specs.contract import CONTRACT_VERSION
from scaler_wizard.specs.events import Event

GIB = 2**30
MAX_ALERTS = 8
ACTIONS: dict[str, list[Action]] = {
    "gate": ["approve", "abort", "rollback", "pause"],
    "running": ["pause", "abort", "rollback"],
    "paused": ["resume", "rollback", "abort"],
    "ended": ["rollback"],
}


class CockpitState:
    """What has been seen so far of one run."""

    def __init__(
        self, run_id: str, *, total_memory: int, provider: str = "local", response_window_sec: int = 120,
        audit: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.run_id = run_id
        self.total_memory = total_memory
        self.provider = provider
        self.window = response_window_sec
        self.audit: dict[str, Any] = dict(audit or {})
        self.trace_id = uuid.uuid5(uuid.UUID(run_id), "trace").hex
        self.status: RunStatus = "initializing"
        self.phase = "-"
        self.sentence = ""
        self.baseline: dict[str, Any] = {}
        self.latest: dict[str, Any] = {}
        self.losses: deque[float] = deque(maxlen=10)
        self.slope: float | None = None
        self.memory = 0
        self.tokens_per_sec: float | None = None
        self.eta_sec: float | None = None
        self.phase_eta: dict[str, float] = {}
        self.gate_open: float | None = None
        self.phases: list[str] = []
        self.alerts: deque[Alert] = deque(maxlen=MAX_ALERTS)
        self.guarantees_met = True

    def apply(self, event: Event) -> None:
        """Take one event in."""
        match event.type:
            case "run_started":
                self.status, self.phases = "running", event.phases
                self.gate_open = None
            case "phase_started":
                self.phase, self.status = event.phase, "running"
                self.losses.clear()
                self.slope, self.eta_sec = None, None
            case "progress":
                self.phase, self.memory = event.phase, event.memory_bytes or self.memory
                self.eta_sec = event.eta_sec
            case "step":
                self.losses.append(event.loss)
                self.slope, self.memory, self.eta_sec = (
                    event.perplexity_slope,
                    event.memory_bytes,
                    event.eta_sec,
                )
                self.tokens_per_sec = event.tokens / event.seconds if event.seconds > 0 else None
            case "telegram":
                self.status = "warning"
                severity = "critical" if event.action == "stop" else "warn"
                modality = "voice" if event.action == "stop" else "visual"
                self.alerts.appendleft(Alert(severity=severity, modality=modality, text=event.reason))
            case "phase_done":
                self.latest = event.metrics
                if not self.baseline:
                    self.baseline = event.metrics
            case "gate_opened":
                self.status, self.sentence, self.gate_open = "paused", event.sentence, event.deadline
            case "gate_closed":
                self.status, self.gate_open = "running", None
            case "rolled_back":
                self.phase = event.phase
            case "run_ended":
                self.status, self.gate_open, self.eta_sec = event.status, None, None
                if event.status == "failed":
                    self.alerts.appendleft(
                        Alert(severity="critical", modality="voice", text=event.reason[:500])
                    )
            case _:
                pass

    def _perplexity(self) -> float | None:
        if self.losses:
            return _bounded_exp(sum(self.losses) / len(self.losses))
        return self.latest.get("perplexity")

    def quality(self) -> QualityMetrics:
        """Quality now, against the P0 baseline where there is one."""
        before, now = self.baseline, self.latest
        return QualityMetrics(
            perplexity=self._perplexity(),
            perplexity_slope=self.slope,
            accuracy=now.get("accuracy"),
            emergent_vibe_score=_score(before, now),
            context_retention=now.get("context_retention"),
            trend=trend(self.slope),
            canonical_sentence=self.sentence,
        )

    def _actions(self) -> list[Action]:
        if self.gate_open is not None:
            return ACTIONS["gate"]
        if self.status in ("paused", "stopped", "failed"):
            return ACTIONS["paused"]
        return ACTIONS["ended" if self.status == "completed" else "running"]

    def _next_decision(self) -> str | None:
        if self.gate_open is not None:
            return datetime.fromtimestamp(self.gate_open, UTC).isoformat(timespec="seconds")
        if self.phase in self.phases:
            later = self.phases[self.phases.index(self.phase) + 1 :]
            return later[0] if later else None
        return None

    def payload(self) -> CockpitPayload:
        """The validated payload.

        Raises:
            pydantic.ValidationError: a defect of ours; the caller logs and drops it.
        """
        return CockpitPayload(
            run_id=self.run_id,
            timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"),
            phase=self.phase,
            status=self.status,
            quality_metrics=self.quality(),
            resource_usage=ResourceUsage(
                vram_used_gb=round(self.memory / GIB, 3),
                vram_total_gb=round(self.total_memory / GIB, 3),
                cpu_utilization=round(min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), 3),
                estimated_time_left_min=None if self.eta_sec is None else round(self.eta_sec / 60, 2),
                tokens_per_sec=self.tokens_per_sec,
                temperature=None,
                hybrid_mode=False,
                provider=self.provider,
            ),
            human_contract=HumanContract(
                version=CONTRACT_VERSION,
                guarantees_met=self.guarantees_met,
                response_window_sec=self.window,
                next_decision_point=self._next_decision(),
            ),
            actions=self._actions(),
            alerts=list(self.alerts),
            trace_id=self.trace_id,
            audit=self.audit,
        )


def _score(before: dict[str, Any], now: dict[str, Any]) -> float | None:
    """emergentVibeScore of two phases' metrics; None before there are two."""
    if now is before or not before.get("perplexity") or not now.get("perplexity"):
        return None
    accuracies = before.get("accuracy"), now.get("accuracy")
    change = None if None in accuracies else now["accuracy"] - before["accuracy"]
    return emergent_vibe_score(now["perplexity"] / before["perplexity"] - 1, change)


def _bounded_exp(nats: float) -> float | None:
    return math.exp(nats) if nats < 700 else None
