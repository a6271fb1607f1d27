"""What the routers' trainings share: their result, and a training that looks at validation rows and stops.

An adapter is attached to the bank's own base while training lasts and taken off again; what is measured in
the end is measured as the engine will read it (`reading.observe`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.reading import observe
from scaler_wizard.inference.experts.routers.files import ADAPTER_FOLDER
from scaler_wizard.inference.experts.routers.rows import RouterRow, RouterSteps
from scaler_wizard.inference.experts.routers.trained import TrainedRouter
from scaler_wizard.models.adapters import attach_lora, save_adapter
from scaler_wizard.planning.router import RouterSettings
from scaler_wizard.training.forward import Objective
from scaler_wizard.training.loop import TrainSettings, train

EVALUATED_ROWS = 64
# Nats. A router that is always right grows surer for ever, which the temperature undoes.
LEAST_PROGRESS = 2e-3


@dataclass(frozen=True, slots=True)
class Look:
    """The validation rows after some steps."""

    step: int
    nll: float
    """Mean negative log-likelihood of the right label, nats."""
    accuracy: float


@dataclass(frozen=True, slots=True, eq=False)
class RouterTraining:
    """A trained router, not yet calibrated, and what its training was like."""

    router: TrainedRouter
    val_logits: Tensor
    """Logits of the validation rows [rows, labels], float64, from what the engine reads of them."""
    steps: int
    looks: tuple[Look, ...]
    """None for the probe, which is fitted in one go."""
    cpu_seconds: float
    details: dict[str, Any] = field(default_factory=dict)

    def right(self, rows: Sequence[RouterRow]) -> tuple[bool, ...]:
        """Which of the validation rows it sends to the right expert."""
        chosen = self.val_logits.argmax(1).tolist()
        return tuple(label == row.label for label, row in zip(chosen, rows, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: all but the tensors."""
        return {
            "kind": self.router.kind, "layer": self.router.layer, "suffix": list(self.router.suffix),
            "steps": self.steps, "looks": [asdict(look) for look in self.looks],
            "cpu_seconds": self.cpu_seconds, **self.details,
        }  # fmt: skip


def logits_of(bank: Bank, router: TrainedRouter, rows: Sequence[RouterRow]) -> Tensor:
    """Logits [rows, labels] of contents, float64, as the engine would read them."""
    return router.logits(torch.stack(observe(bank, router, [row.prompt for row in rows])))


@contextmanager
def adapted(
    bank: Bank, settings: RouterSettings, seed: int, *, invocation: Sequence[int] | None, layers: int | None
) -> Iterator[Any]:
    """The bank's base with a fresh adapter on the decoder's linear layers, taken off at the end.

    layers: only in the first so many decoder layers; None: in all.
    """
    targets = [name for name in bank.linears if layers is None or _layer_of(name) < layers]
    model = attach_lora(
        bank.model, rank=settings.rank, alpha=settings.alpha, target_modules=targets,
        alora_invocation_tokens=invocation, seed=seed,
    )  # fmt: skip
    try:
        yield model
    finally:
        model.unload()
        # PEFT's unload leaves its mark, and a later wrap would warn of a second adapter.
        bank.model.__dict__.pop("peft_config", None)
        bank.model.requires_grad_(False)
        bank.model.eval()


def _layer_of(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())


def keep_adapter(model: Any, directory: Path) -> None:
    """Write the adapter where `load_router` looks for it."""
    save_adapter(model, directory / ADAPTER_FOLDER)


def train_with_looks(
    model: nn.Module,
    steps: RouterSteps,
    objective: Objective,
    settings: RouterSettings,
    look: Callable[[], tuple[float, float]],
    seed: int,
) -> tuple[int, tuple[Look, ...]]:
    """Train until the validation loss has hardly fallen for `patience` looks; the best look's weights stay.

    look: (nll, accuracy) of the validation rows now.
    """
    plan = TrainSettings(
        total_steps=settings.max_steps, learning_rate=settings.learning_rate, seed=seed, schedule="cosine"
    )
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    looks: list[Look] = []
    best: dict[str, Tensor] = {}
    reached, idle = math.inf, 0
    for result in train(model, steps, objective, plan, device=next(model.parameters()).device):
        if result.step % settings.look_steps and result.step != settings.max_steps:
            continue
        looks.append(Look(result.step, *look()))
        if looks[-1].nll <= min(item.nll for item in looks):
            best = {name: value.detach().clone() for name, value in trained.items()}
        if looks[-1].nll < reached - LEAST_PROGRESS:
            reached, idle = looks[-1].nll, 0
        else:
            idle += 1
        if idle == settings.patience:
            break
    with torch.no_grad():
        for name, value in best.items():
            trained[name].copy_(value)
    return looks[-1].step, tuple(looks)


class CpuClock:
    """CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self._start = time.process_time()

    @property
    def seconds(self) -> float:
        """So far."""
        return time.process_time() - self._start
