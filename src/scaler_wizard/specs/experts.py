"""The `experts` job: many LoRA experts behind one router, served as one model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scaler_wizard.specs.base import Spec
from scaler_wizard.specs.contract import Contract
from scaler_wizard.specs.sections import (
    NAME_PATTERN,
    BreakerSection,
    ModelSection,
    OptimiserSection,
    SafetySection,
    ScalingSection,
)


class ExpertsJob(Spec):
    """One `experts` job."""

    recipe: Literal["experts"] = "experts"
    """Which recipe this job is for."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "experts"
    """Name of the run's folder."""
    model: ModelSection
    """The base that every expert was trained on, and where it runs."""
    scaling: ScalingSection = ScalingSection()
    """How adapters that this run trains are made."""
    training: OptimiserSection = OptimiserSection()
    """Budget and optimiser of the adapters that this run trains."""
    safety: SafetySection = SafetySection(circuit_breaker=BreakerSection(min_accuracy=0.0))
    """Breaker, gates, and what is reported."""
    contract: Contract | None = None
    """The signed contract; `scaler sign` writes it."""
