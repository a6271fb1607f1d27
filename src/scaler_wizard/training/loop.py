"""The training loop: forward, backward, look, step. Recipes hand it everything and read what it yields.

Knows nothing of recipes, phases, files or breakers: the `guard` is asked after every backward pass, before
the optimiser moves a single weight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from scaler_wizard.data.batches import Step, Steps
from scaler_wizard.errors import BreakerTrippedError
from scaler_wizard.training.allocator import keep_freed_memory, return_freed_memory
from scaler_wizard.training.distributed import ALONE, Ranks
from scaler_wizard.training.forward import Objective, training_mode
from scaler_wizard.training.memory import memory_bytes
from scaler_wizard.training.randomness import step_randomness
from scaler_wizard.training.schedule import Shape, learning_rate_at
from scaler_wizard.training.state import TrainState


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Budget and optimiser of one training."""

    total_steps: int
    """Optimiser steps; the schedule ends with the last of them."""
    learning_rate: float
    """Peak learning rate."""
    warmup_fraction: float = 0.05
    """Share of the steps with a linearly rising rate."""
    schedule: Shape = "cosine"
    """Shape of the rate after warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    eps: float = 1e-8
    """AdamW's guard against division by zero."""
    max_grad_norm: float = 1.0
    """Gradient norm above which gradients are scaled down to it."""
    seed: int = 0
    """Seed of dropout and of every other draw inside a step."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time for much less memory."""
    fused: bool = True
    """Run adapted layers, MLPs and norms as fused functions where they qualify (`fast_path.py`)."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step, as the guard sees it before and the caller after the optimiser moved."""

    step: int
    """1 for the first."""
    total_steps: int
    loss: float
    """Mean over the step's targets, nats."""
    grad_norm: float
    """L2 norm before clipping."""
    learning_rate: float
    tokens: int
    """Real tokens of the step."""
    label_tokens: int
    """Targets of the step."""
    metrics: dict[str, float]
    """The objective's own sums, divided by the targets."""
    seconds: float
    """From the first micro-batch to this look."""
    memory_bytes: int
    """Resident memory of the process, or torch's allocation on CUDA."""


Guard = Callable[[StepResult], bool]
"""Asked after backward and before the optimiser step; False ends the training without that step."""


def new_state(model: Any, settings: TrainSettings) -> TrainState:
    """A training at step 0 over every parameter of `model` that requires a gradient."""
    return TrainState(
        model.named_parameters(), betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )


def train(
    model: Any,
    batches: Steps,
    objective: Objective,
    settings: TrainSettings,
    *,
    guard: Guard = lambda result: True,
    state: TrainState | None = None,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
) -> Iterator[StepResult]:
    """Train from `state.step` to `settings.total_steps`, yielding after every optimiser step.

    The loss of a step is the mean over all its targets, however they fall into micro-batches. Step i depends
    on (weights, moments, i) alone: batches and random draws are functions of i, so that a saved `state` is
    all there is to resume. Between two yields the caller may evaluate, save `state`, or stop iterating.

    Args:
        model: a transformers model or PEFT wrapper of one, on `device`; what requires a gradient is trained.
        guard: may end the training before a step is applied. The result it refused is not yielded.
        state: where to go on; a new one when None.
        ranks: the processes that train together, each calling this with the same arguments. The step is
            divided among them, and it is applied where every rank's guard lets it pass.

    Raises:
        BreakerTrippedError: the loss or the gradient is not finite and the guard let it pass. Such a step is
            never applied.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return_freed_memory() if settings.activation_checkpointing else keep_freed_memory()
    state = state if state is not None else new_state(model, settings)
    while state.step < settings.total_steps:
        try:
            # Per step, so that between two yields the model is in eval mode with its own attention.
            with training_mode(
                model, activation_checkpointing=settings.activation_checkpointing, fused=settings.fused
            ):
                step = batches.step(state.step)
                result = _accumulate(model, step, objective, settings, state, device, ranks)
            go_on = ranks.agree(guard(result))
            if go_on and not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
                raise BreakerTrippedError(
                    f"loss {result.loss}, gradient norm {result.grad_norm}", result.step,
                    "lower the learning rate, or look for damaged rows or weights",
                )  # fmt: skip
            if not go_on:
                return
            state.apply(result.learning_rate, _clip(result.grad_norm, settings.max_grad_norm))
        finally:
            state.clear_gradients()
        yield result


def _accumulate(
    model: Any,
    step: Step,
    objective: Objective,
    settings: TrainSettings,
    state: TrainState,
    device: torch.device,
    ranks: Ranks,
) -> StepResult:
    """Gradients of the mean loss over all targets of the step, and what there is to say about it."""
    started = time.perf_counter()
    n_labels = step.n_labels
    sums = {"loss": torch.zeros((), dtype=torch.float64, device=device)}
    with step_randomness(ranks.seed(settings.seed), state.step, device):
        for micro, counted in ranks.share(step):
            result = objective(model, micro.to(device))
            (result.loss_sum * (counted / n_labels)).backward()  # type: ignore[no-untyped-call]
            for name, value in {**result.metrics, "loss": result.loss_sum.detach()}.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value * counted
    totals = ranks.sum_up(state, torch.stack([sums[name].double() for name in sorted(sums)])).tolist()
    means = {name: total / n_labels for name, total in zip(sorted(sums), totals, strict=True)}
    return StepResult(
        step=state.step + 1,
        total_steps=settings.total_steps,
        loss=means.pop("loss"),
        grad_norm=ranks.gradient_norm(state),
        learning_rate=learning_rate_at(
            state.step,
            settings.total_steps,
            settings.learning_rate,
            settings.warmup_fraction,
            settings.schedule,
        ),
        tokens=step.n_tokens,
        label_tokens=n_labels,
        metrics=means,
        seconds=time.perf_counter() - started,
        memory_bytes=memory_bytes(device),
    )


def _clip(norm: float, most: float) -> float:
    """The factor that brings a gradient norm down to `most`."""
    return 1.0 if norm <= most else most / norm
