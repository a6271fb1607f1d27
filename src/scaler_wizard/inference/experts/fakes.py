"""Experts and routers that were never trained, for tests and measurements: random, but real in every part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from torch import Tensor

from scaler_wizard.inference.experts.routing import RouterKind, RouteScores
from scaler_wizard.models.adapter_io import save_adapter, wrap

ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_random_adapter(
    model: Any,
    directory: Path,
    *,
    seed: int,
    invocation: Sequence[int] | None,
    rank: int = 4,
    alpha: int = 8,
    targets: Sequence[str] = ALL_LINEARS,
    use_rslora: bool = False,
) -> Path:
    """Write a PEFT adapter of random matrices for a base, which is left as it was; returns the directory."""
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=alpha,
        target_modules=list(targets), use_rslora=use_rslora, init_lora_weights=False,
        alora_invocation_tokens=None if invocation is None else list(invocation),
    )  # fmt: skip
    wrapped = wrap(model, config, seed)
    try:
        save_adapter(wrapped, directory)
    finally:
        wrapped.unload()
        model.__dict__.pop("peft_config", None)
    return directory


@dataclass(frozen=True, slots=True, eq=False)
class LinearRouter:
    """softmax((W x + b) / temperature): a `Router` of every kind."""

    labels: tuple[str, ...]
    weight: Tensor
    """W [labels, h or labels]."""
    bias: Tensor
    """b [labels]."""
    kind: RouterKind = "features"
    layer: int = 1
    text_only: bool = False
    suffix: tuple[int, ...] = ()
    label_tokens: tuple[int, ...] = ()
    adapter: str | None = None
    temperature: float = 1.0
    threshold: float = 0.0

    def decide(self, values: Tensor) -> RouteScores:
        """See `Router.decide`."""
        logits = (self.weight.double() @ values.double() + self.bias.double()) / self.temperature
        return RouteScores(tuple(logits.softmax(0).tolist()))


def random_router(labels: Sequence[str], width: int, *, seed: int = 0, **settings: Any) -> LinearRouter:
    """A router whose decisions on random hidden states differ: W normal with a deviation of 1, b 0."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(labels), width, generator=generator)
    return LinearRouter(tuple(labels), weight, torch.zeros(len(labels)), **settings)
