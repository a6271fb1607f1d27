"""The `bootstrap` job: a base model teaches itself instructions, then a constitution, in six stages."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scaler_wizard.specs.base import Spec
from scaler_wizard.specs.constitution_section import ConstitutionSection
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


class WorldSection(Spec):
    """What is asked: the prompts that answers are made for, and those that only measure."""

    source: Literal["embedded", "file"] = "embedded"
    """Letter tasks with exact verifiers, or a file of prompts of your own."""
    file: str | None = None
    """JSONL file of your prompts: instruction, and where there are any document, question, type, answer."""
    types: list[str] = []
    """Kinds of embedded task that are used; all of them when empty."""
    levels: list[Annotated[int, Field(ge=1, le=10)]] = [1, 2, 3]
    """Difficulties of the embedded tasks, 1 is the easiest."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source == "file") != (self.file is not None):
            raise ValueError(
                f'source is "{self.source}" and file is {"empty" if self.file is None else "given"}; a file '
                "of prompts goes with source: file"
            )
        return self


class StageSection(Spec):
    """One stage: how much data it makes, how long it trains on it, what it must reach."""

    prompts: Annotated[int, Field(ge=8, le=1_000_000)] = 1500
    """Prompts that data is made for at first; a failed gate makes more where it is weak."""
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Optimiser steps; training.max_steps when empty."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate; that of all stages when empty."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Gate: the lower end of the 95% interval of the share of right answers must reach this."""
    replay: Annotated[float, Field(ge=0, le=0.9)] = 0.4
    """Share of the training tokens that is replayed: rows of earlier stages, and text of the base itself."""


class StagesSection(Spec):
    """Stages 1 to 5; the sixth has a section of its own."""

    last: Annotated[int, Field(ge=0, le=6)] = 6
    """The last stage to run: 0 measures the base and trains nothing."""
    explicit: StageSection = StageSection()
    """Stage 1: instructions that say what to do."""
    implicit: StageSection = StageSection(share=0.90)
    """Stage 2: questions that imply an instruction."""
    make: StageSection = StageSection(prompts=1000)
    """Stage 3: making tasks."""
    evaluate: StageSection = StageSection(share=0.85)
    """Stage 4: judging answers."""
    revise: StageSection = StageSection(share=0.90)
    """Stage 5: mending answers."""
    more_data: Annotated[float, Field(gt=0, le=10)] = 0.5
    """After a failed gate, so many times the first prompts are added, all of weak types."""
    more_replay: Annotated[float, Field(ge=0, le=0.9)] = 0.6
    """After a second failed gate: share of replay."""


class SamplingSection(Spec):
    """How answers are drawn, and which are kept: by agreement and by the model's own confidence."""

    samples: Annotated[int, Field(ge=1, le=64)] = 4
    """Samples of each answer beside the likeliest one."""
    temperature: Annotated[float, Field(gt=0, le=5)] = 0.7
    """Sampling temperature."""
    agreement: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Share of the samples that must equal the likeliest answer for it to be kept."""
    confidence: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Mean probability of the kept answer's tokens, by the model that gave it, at least."""
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)] = 32
    """Most tokens of one answer."""
    base_texts: Annotated[int, Field(ge=0, le=1_000_000)] = 400
    """Texts sampled from the base itself, replayed in every stage."""
    examples: Annotated[int, Field(ge=0, le=64)] = 3
    """Worked examples before a task when the base is asked in few-shot form."""


class MeasureSection(Spec):
    """How much is measured after every stage."""

    questions: Annotated[int, Field(ge=20, le=100_000)] = 500
    """Held-out questions of each skill; every stage answers the same ones."""
    least: Annotated[int, Field(ge=20, le=100_000)] = 500
    """Fewest questions that a gate may decide on."""


class BootstrapJob(Spec):
    """One `bootstrap` job."""

    recipe: Literal["bootstrap"] = "bootstrap"
    """Which recipe this job is for."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "bootstrap"
    """Name of the run's folder."""
    model: ModelSection
    """The base model, and where it runs."""
    world: WorldSection = WorldSection()
    """What is asked."""
    stages: StagesSection = StagesSection()
    """What each stage makes, trains and must reach."""
    constitution: ConstitutionSection = ConstitutionSection()
    """Stage 6: critique, revision and preference training by a constitution."""
    sampling: SamplingSection = SamplingSection()
    """How data is drawn and filtered."""
    evaluation: MeasureSection = MeasureSection()
    """How much is measured."""
    scaling: ScalingSection = ScalingSection()
    """What each stage trains; merged into the model when the stage has passed its gate."""
    training: OptimiserSection = OptimiserSection()
    """Budget and optimiser of one stage."""
    price_per_hour: Annotated[float, Field(ge=0)] | None = None
    """What an hour of this machine costs, for the running total; nothing is counted when empty."""
    safety: SafetySection = SafetySection(
        circuit_breaker=BreakerSection(min_accuracy=0.0), checkpoint_every_sec=HALF_AN_HOUR
    )
    """Breaker, gates, and what is reported."""
    contract: Contract | None = None
    """The signed contract; `scaler sign` writes it."""


def constitution_name(job: BootstrapJob) -> str:
    """The constitution that a job names, or the one that goes with its world."""
    return job.constitution.source or ("embedded" if job.world.source == "embedded" else "default")
