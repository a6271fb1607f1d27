"""The early-exit router: an adapter in the first layers, a mean over tokens, a linear head. For few labels.

It reads the content a second time, but through some layers only. The head starts as the probe of the bare
base, so that the adapter has only to improve on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaler_wizard.data.batches import MicroBatch
from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.forward import decoder_layers
from scaler_wizard.inference.experts.reading import observe
from scaler_wizard.inference.experts.routers.packed import pooled_hidden
from scaler_wizard.inference.experts.routers.probe import RIDGES, fit_linear, nll_and_accuracy
from scaler_wizard.inference.experts.routers.rows import (
    RouterBatch,
    RouterRow,
    RouterSteps,
    batched,
    router_batch,
)
from scaler_wizard.inference.experts.routers.trained import TrainedRouter
from scaler_wizard.inference.experts.routers.training import (
    EVALUATED_ROWS,
    CpuClock,
    RouterTraining,
    adapted,
    keep_adapter,
    logits_of,
    train_with_looks,
)
from scaler_wizard.losses.sft import LossResult
from scaler_wizard.planning.router import RouterSettings
from scaler_wizard.training.forward import training_mode


class PooledModel(nn.Module):
    """An adapted model under a linear head on its mean hidden state after some layers."""

    def __init__(self, model: Any, layer: int, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        device = next(model.parameters()).device
        self.weight, self.bias = nn.Parameter(weight.to(device)), nn.Parameter(bias.to(device))

    def get_base_model(self) -> Any:
        """The transformers model inside, as PEFT's wrappers name it."""
        return self.model.get_base_model()

    def logits(self, batch: RouterBatch) -> Tensor:
        """[segments, labels], float32."""
        return F.linear(pooled_hidden(self.model, batch, self.layer), self.weight, self.bias)


def train_early_router(
    bank: Bank,
    labels: Sequence[str],
    rows: Sequence[RouterRow],
    val: Sequence[RouterRow],
    *,
    settings: RouterSettings,
    directory: Path,
    layer: int | None = None,
    seed: int = 0,
) -> RouterTraining:
    """Train an adapter in the first `layer` layers (half of them when None) together with a pooled head."""
    clock = CpuClock()
    layer = layer or math.ceil(len(decoder_layers(bank.model)) / 2)
    truth, val_truth = (torch.tensor([row.label for row in part]) for part in (rows, val))
    base = TrainedRouter(tuple(labels), "features", torch.empty(0), torch.empty(0), layer=layer)
    features = torch.stack(observe(bank, base, [row.prompt for row in rows]))
    weight, bias = fit_linear(features, truth, len(labels), max(RIDGES))

    def objective(model: Any, micro: MicroBatch) -> LossResult:
        assert isinstance(micro, RouterBatch)
        found = model.logits(micro)
        targets = micro.targets.to(found.device)
        correct = (found.detach().argmax(1) == targets).sum()
        return LossResult(
            F.cross_entropy(found, targets, reduction="sum"), len(targets), {"correct": correct}
        )

    steps = RouterSteps(rows, (), batch_rows=settings.batch_rows, step_rows=settings.step_rows, seed=seed)
    with adapted(bank, settings, seed, invocation=None, layers=layer) as model:
        pooled = PooledModel(model, layer, weight, bias)

        def look() -> tuple[float, float]:
            with torch.no_grad(), training_mode(pooled):
                parts = [pooled.logits(router_batch(part, ())) for part in batched(val, EVALUATED_ROWS)]
            return nll_and_accuracy(torch.cat(parts).double().cpu(), val_truth)

        n_steps, looks = train_with_looks(pooled, steps, objective, settings, look, seed)
        keep_adapter(model, directory)
        head = pooled.weight.detach().cpu().clone(), pooled.bias.detach().cpu().clone()
    router = TrainedRouter(
        tuple(labels), "early", *head, layer=layer, adapter=bank.load(directory / "adapter").hash
    )
    return RouterTraining(
        router, logits_of(bank, router, val), n_steps, looks, clock.seconds, {"settings": settings.as_dict()}
    )
