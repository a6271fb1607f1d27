"""The `bootstrap` job: a base model teaches itself instructions, then a constitution, in six stages."""

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

HALF_AN_HOUR = 1800.0


class BootstrapJob(Spec):
    """One `bootstrap` job."""

    recipe: Literal["bootstrap"] = "bootstrap"
    """Which recipe this job is for."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "bootstrap"
    """Name of the run's folder."""
    model: ModelSection
    """The base model, and where it runs."""
    scaling: ScalingSection = ScalingSection()
    """What each stage trains; merged into the model when the stage has passed its gate."""
    training: OptimiserSection = OptimiserSection()
    """Budget and optimiser of one stage."""
    safety: SafetySection = SafetySection(
        circuit_breaker=BreakerSection(min_accuracy=0.0), checkpoint_every_sec=HALF_AN_HOUR
    )
    """Breaker, gates, and what is reported."""
    contract: Contract | None = None
    """The signed contract; `scaler sign` writes it."""
