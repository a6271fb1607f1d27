"""What a bootstrap job says about its sixth stage: which constitution, how many prompts, how it trains."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from scaler_wizard.specs.base import Spec


class PreferenceSection(Spec):
    """Training on pairs of answers."""

    method: Literal["dpo", "orpo"] = "dpo"
    """dpo compares with the model before this training; orpo needs no reference."""
    beta: Annotated[float, Field(gt=0, le=10)] = 0.1
    """dpo: how far the model may move from its reference. orpo: weight of the odds-ratio term."""
    sft_weight: Annotated[float, Field(ge=0, le=100)] = 0.2
    """dpo: weight of plain fine-tuning on the chosen answers. Without it their own probability can fall."""
    anchor_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Weight of plain fine-tuning on anchors: answers that keep to every principle already, and replay."""
    anchors_per_pair: Annotated[float, Field(ge=0, le=100)] = 4.0
    """Anchor rows beside each pair."""
    pairs_per_step: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Pairs of one optimiser step."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """dpo: share of pairs taken to be the wrong way round."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate; a quarter of the other stages' when empty."""
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Optimiser steps; training.max_steps when empty."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Steps of plain fine-tuning on chosen answers and anchors before the pairs; dpo starts from its end."""


class SafetyFilterSection(Spec):
    """A second opinion on answers by a classifier with the interface of Llama Guard. Off by default."""

    model: str | None = None
    """Directory or cached hub name of a causal model that replies "safe", or "unsafe" and categories."""
    endpoint: str | None = None
    """Address of a server with an OpenAI-compatible /v1/chat/completions; its model is `model`."""
    unsafe: Literal["reject", "record"] = "reject"
    """What becomes of an answer that it calls unsafe: not trained on, or only noted in the records."""
    timeout_sec: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """How long one answer of the endpoint may take."""

    @property
    def is_on(self) -> bool:
        """Whether there is one."""
        return self.model is not None or self.endpoint is not None

    @model_validator(mode="after")
    def _an_address(self) -> Self:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f'endpoint is "{self.endpoint}"; it begins with http:// or https://')
        return self


class ConstitutionSection(Spec):
    """Stage 6: critique and revision by a constitution, then preference training."""

    source: str | None = None
    """"default", "embedded", or a constitution.yaml of your own; by the world when empty."""
    prompts: Annotated[int, Field(ge=8, le=1_000_000)] = 1500
    """Prompts that are answered, judged and revised at first; a failed gate adds half of them again."""
    principles_per_answer: Annotated[int, Field(ge=1, le=500)] = 4
    """Principles that judge one answer, drawn by their weight."""
    most_revisions: Annotated[int, Field(ge=1, le=16)] = 3
    """Revisions of one answer, one principle after another, before it is given up."""
    negatives: Annotated[float, Field(ge=0, le=0.9)] = 0.2
    """Share of the pairs whose rejected answer is made wrong on purpose, in a known way."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.90
    """Gate: the lower end of the 95% interval of the share of prompts, among those that tempt, whose
    principle is kept."""
    requests: Annotated[int, Field(ge=20, le=100_000)] = 500
    """Held-out requests of each kind that measure: tempting, near-misses, benign."""
    preference: PreferenceSection = PreferenceSection()
    """Training on the pairs."""
    safety_filter: SafetyFilterSection = SafetyFilterSection()
    """An optional classifier beside the constitution."""
