"""The `grow` job: more capacity and a longer context for one model.

Sections: model, scaling, training, dataset, evaluation, safety, export, contract. Every field has a
default except the model, the dataset and (before it may run) the contract.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from scaler_wizard.specs.base import Spec
from scaler_wizard.specs.contract import Contract
from scaler_wizard.specs.sections import (
    NAME_PATTERN,
    DatasetSection,
    ExportSection,
    ModelSection,
    OptimiserSection,
    SafetySection,
    ScalingSection,
)


class TrainingSection(OptimiserSection):
    """Budget and optimiser. One phase trains at most `max_steps`."""

    context_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 200
    """Most optimiser steps at each new context length; a length that passes untrained uses none."""
    final_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Optimiser steps of the last phase (P4), at the final context."""
    replay_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of training tokens that is plain text, kept so that old skills stay; used when there is any."""


class EvaluationSection(Spec):
    """How much is measured at every phase."""

    documents: Annotated[int, Field(ge=4, le=10_000)] = 48
    """Held-out documents per context length."""
    target_tokens: Annotated[int, Field(ge=4, le=4096)] = 32
    """Tokens at the end of each document whose loss is compared between windows."""
    needles_per_depth: Annotated[int, Field(ge=4, le=10_000)] = 24
    """Needles hidden at each depth."""
    depths: list[float] = [0.0, 0.25, 0.5, 0.75, 1.0]
    """Relative depths of the needles, 0 is the start; at least five."""
    epsilon: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Allowed rise of the same-target loss over the base window, nats per token, plus 2 standard errors."""
    short_tolerance: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Allowed relative rise of the loss within the base context: 0.01 is 1%."""
    task_rows: Annotated[int, Field(ge=0, le=100_000)] = 200
    """Held-out rows answered and checked by the task probe, where the data has checkable answers."""

    @field_validator("depths")
    @classmethod
    def _depths(cls, value: list[float]) -> list[float]:
        if len(value) < 5 or not all(0 <= depth <= 1 for depth in value):
            raise ValueError(f"depths {value} must be at least five numbers between 0 and 1")
        return value


class GrowJob(Spec):
    """One `grow` job."""

    recipe: Literal["grow"] = "grow"
    """Which recipe this job is for."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "grow"
    """Name of the run's folder: letters, digits, dot, dash and underscore."""
    model: ModelSection
    """Which model grows, and where it runs."""
    scaling: ScalingSection = ScalingSection()
    """How the model grows."""
    training: TrainingSection = TrainingSection()
    """Budget and optimiser."""
    dataset: DatasetSection
    """The rows to learn from."""
    evaluation: EvaluationSection = EvaluationSection()
    """How much is measured at every phase."""
    safety: SafetySection = SafetySection()
    """Breaker, gates, and what is reported."""
    export: ExportSection = ExportSection()
    """What is written at the end."""
    community_share: Annotated[bool, Field(alias="communityShare")] = False
    """Offer this run's settings and results to a shared pattern file. Nothing is sent by itself."""
    contract: Contract | None = None
    """The signed contract; `scaler sign` writes it."""

    @model_validator(mode="after")
    def _needs_identifier(self) -> GrowJob:
        if not self.dataset.identifier:
            raise ValueError(
                'dataset.identifier is empty; name the data file (or "seedling" with source synthetic)'
            )
        return self
