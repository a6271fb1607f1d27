"""Sections that jobs of several recipes have in common.

Each recipe's own sections stand in its own module; a section moves here when a second recipe takes it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from scaler_wizard.specs.base import Spec

Strategy = Literal["lora", "qlora", "full", "prefix_tuning"]
RopeMethod = Literal["none", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope"]
Runtime = Literal["auto", "cpu", "single_gpu", "multi_gpu", "remote"]
Precision = Literal["auto", "float32", "bfloat16"]
DataFormat = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class ModelSection(Spec):
    """Which model grows, and where it runs."""

    base_model: str
    """A model directory, a Hugging Face hub name, or "seedling" for the embedded model."""
    tokenizer: str | None = None
    """Another tokenizer directory or hub name; the model's own when empty."""
    revision: str | None = None
    """Hub revision (commit, tag or branch)."""
    runtime: Runtime = "auto"
    """Where to run: auto picks one GPU when there is one, else the CPU."""
    precision: Precision = "auto"
    """Number format of the frozen weights: auto is bfloat16 where the hardware computes in it."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. The contract's scope must say "remote code" too."""


class LoraSection(Spec):
    """Low-rank adapter settings; empty ones are suggested from hardware, data and target."""

    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rank r of every adapter matrix."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scaling numerator: the update is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout on the adapter's input."""
    target_modules: list[str] | Literal["all-linear", "attention"] = "all-linear"
    """Which linear layers get an adapter: names, "all-linear" or "attention"."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead (rank-stabilised LoRA)."""


class LongRopeFactors(Spec):
    """Per-dimension factors of LongRoPE, as published with a model; none can be guessed."""

    short_factor: list[float]
    """Divisors of the inverse frequencies up to the original context (head_dim / 2 values)."""
    long_factor: list[float]
    """Divisors beyond the original context (head_dim / 2 values)."""


class VocabularySection(Spec):
    """New tokens for the tokenizer."""

    add_tokens: list[str] = []
    """Texts that become one token each; their embeddings start as the mean of their parts."""


class DistillationSection(Spec):
    """A larger teacher of the same family."""

    teacher: str
    """Model directory or hub name of the teacher."""
    temperature: Annotated[float, Field(gt=0, le=20)] = 2.0
    """Softmax temperature T of teacher and student; the loss is multiplied by T squared."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the distillation loss; the rest is cross-entropy on the labels."""
    kind: Literal["forward", "reverse", "js"] = "forward"
    """Divergence from the teacher: forward KL covers all it does, reverse KL its likeliest, js both."""
    top_k: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Teacher tokens cached per position (8 bytes each); all others count as one."""
    hidden_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of matching the teacher's final hidden states through a learned projection (0: off)."""


class ScalingSection(Spec):
    """How the model grows."""

    strategy: Strategy = "lora"
    """What is trained: low-rank adapters (lora, qlora), all weights (full), or a prefix (prefix_tuning)."""
    template: str | None = None
    """A scaling template: one of the six that ship, or your own from the workspace."""
    adaptive_rank: bool = True
    """Let hardware and target choose the rank where `lora.rank` is empty."""
    lora: LoraSection = LoraSection()
    """Adapter settings."""
    target_context: Annotated[int, Field(ge=64, le=1_048_576)] | None = None
    """Context length to reach, in tokens; the base context when empty."""
    context_schedule: list[int] | None = None
    """Lengths to pass through, one gate each, at most 2x apart; doublings when empty."""
    rope_method: RopeMethod | Literal["auto"] = "auto"
    """How rotary positions are stretched; auto scores every candidate at each length."""
    longrope_factors: LongRopeFactors | None = None
    """Factors for LongRoPE; the method is a candidate only when they are given."""
    vocabulary: VocabularySection = VocabularySection()
    """Vocabulary growth."""
    distillation: DistillationSection | None = None
    """Learn from a teacher in the last phase."""

    @field_validator("context_schedule")
    @classmethod
    def _rising(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and (not value or sorted(set(value)) != value or value[0] < 16):
            raise ValueError(f"context_schedule {value} must rise strictly from at least 16 tokens")
        return value


class OptimiserSection(Spec):
    """Budget and optimiser, as every recipe has them."""

    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 200
    """Most optimiser steps of the phase that learns the rows (P1)."""
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Stop P1 after this many passes over the data, when that is earlier than max_steps."""
    batch_tokens: Annotated[int, Field(ge=16)] | None = None
    """Tokens of one optimiser step (effective batch); 8 rows of the context when empty."""
    micro_batch_tokens: Annotated[int, Field(ge=16)] | None = None
    """Tokens of one forward pass; chosen from the memory model when empty."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate; 2e-4 for adapters of real models, chosen by size when empty."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the steps with a linearly rising rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradient norm above which gradients are scaled down."""
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass: auto only when the memory model says it is needed."""
    seed: int = 0
    """Seed of every random choice of the run."""


class DatasetSection(Spec):
    """The rows to learn from."""

    source: Literal["local", "huggingface_hub", "synthetic"] = "local"
    """Where the rows are: a file, a hub dataset, or generated tasks for the embedded model."""
    identifier: str = ""
    """Path of the file, name of the hub dataset, or name of the generator."""
    split: str = "train"
    """Split of a hub dataset."""
    format: DataFormat = "auto"
    """Row format; auto looks at the first rows and says what it found."""
    text_file: str | None = None
    """Optional plain text for replay and for measuring the context; the dataset's own rows when empty."""
    holdout_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of the rows kept out of training for evaluation."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Use at most this many rows."""
    long_rows: Literal["split", "refuse"] = "split"
    """What happens to a row longer than the context: split at the context, or refused. Never cut silently."""
    bad_rows: Literal["stop", "quarantine"] = "stop"
    """A row that cannot be read stops the run, or is set aside and counted."""
    system_prompt: str | None = None
    """System turn put before every conversation that has none."""


class BreakerSection(Spec):
    """Limits of the circuit breaker."""

    window: Annotated[int, Field(ge=3, le=1000)] = 10
    """Steps that the slope and the means are taken over."""
    max_perplexity_slope: Annotated[float, Field(gt=0)] = 0.15
    """Rise of perplexity per optimiser step (least squares over the window) that trips."""
    min_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Accuracy floor, used where a task accuracy is reported."""
    loss_spike: Annotated[float, Field(gt=1)] = 2.0
    """A loss above this multiple of the window's mean trips."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1000.0
    """A gradient norm (before clipping) above this trips."""
    mode: Literal["stop", "warn"] = "stop"
    """Stop the run, or only warn. Not-a-number always stops."""


class GateSection(Spec):
    """Human decisions between phases."""

    response_window_sec: Annotated[int, Field(ge=30, le=600)] = 120
    """Seconds to answer; after that the run pauses, it never goes on by itself."""
    ask: Literal["human", "auto_approve"] = "human"
    """Who answers: a person, or (in demos and tests, said aloud) the run itself."""


class SafetySection(Spec):
    """Breaker, gates, and what is reported."""

    circuit_breaker: BreakerSection = BreakerSection()
    """Limits of the circuit breaker."""
    gates: GateSection = GateSection()
    """Human decisions between phases."""
    checkpoint_every_sec: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Seconds between two checkpoints inside a training: what a kill or a power cut loses at most."""
    telemetry: Literal["standard", "detailed", "high_resolution", "exploratory"] = "standard"
    """How often measurements are written: every step, or with more fields."""


class ExportSection(Spec):
    """What is written at the end."""

    adapter: bool = True
    """The adapter alone, in PEFT's format (where adapters were trained)."""
    merged: bool = True
    """The whole model with adapters merged, as safetensors."""
    directory: str | None = None
    """Where to; "export" in the run directory when empty."""
