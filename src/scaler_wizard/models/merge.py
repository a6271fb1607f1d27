"""Adapters into weights for good, and how far two models' outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from scaler_wizard.errors import IncompatibleModelError, ModelError
from scaler_wizard.models.adapter_fold import lora_layers, merged_weight

# Mean difference of logits, in units of their standard deviation, that rounding merged weights explains.
# Measured in bfloat16 on models of 2 to 24 layers: 0.01 to 0.03; in float32: below 1e-6.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
COARSEST = 1e-1
MAX_POSITIONS = 256


@dataclass(frozen=True)
class LogitComparison:
    """Differences of logits (nats) over `n_positions` positions; `scale` is their standard deviation."""

    max_abs: float
    mean_abs: float
    scale: float
    top1_agreement: float
    n_positions: int
    tolerance: float

    @property
    def ok(self) -> bool:
        """True if the mean difference is at most `tolerance` standard deviations; never for NaN."""
        return math.isfinite(self.max_abs) and self.mean_abs <= self.tolerance * max(self.scale, 1e-6)

    def __str__(self) -> str:
        return (
            f"logits differ by {self.mean_abs:.2e} on average and {self.max_abs:.2e} at most "
            f"(standard deviation {self.scale:.2f}), top-1 agreement {self.top1_agreement:.1%}, "
            f"n = {self.n_positions} positions"
        )


def merge_adapter(model: PeftModel) -> Any:
    """The base model with its LoRA adapter merged, in place: summed in float32, rounded once.

    Raises:
        IncompatibleModelError: a prefix (its keys and values have no place in the weights), or 4-bit weights.
    """
    refuse_prefix(model)
    layers = lora_layers(model)
    with torch.no_grad():
        merged = {name: merged_weight(layer) for name, layer in layers.items()}
        for name, layer in layers.items():
            layer.get_base_layer().weight.data = merged[name]
    return model.unload()


def refuse_prefix(model: Any) -> None:
    """Raise IncompatibleModelError if the model's adapter cannot be merged."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise IncompatibleModelError(
            "a prefix, which cannot be merged: its trained keys and values are no weights of the model",
            "a LoRA adapter",
            "export the adapter instead (export.adapter: true, export.merged: false)",
        )


def logit_comparison(
    first: Any, second: Any, input_ids_list: Sequence[Tensor], *, tolerance: float | None = None
) -> LogitComparison:
    """Compare two models' logits on the same token ids.

    Args:
        input_ids_list: sequences [T] of one row each, any lengths. At most `MAX_POSITIONS` positions of
            each, evenly spaced and always the last, go through the LM head, so that long sequences do
            not need T x vocabulary logits.
        tolerance: see `LogitComparison.ok`; by the coarser of the two models' formats when None.

    Raises:
        ModelError: different vocabularies, or no sequence.
    """
    if tolerance is None:
        tolerance = max(TOLERANCE.get(model.dtype, COARSEST) for model in (first, second))
    pairs = [(sampled_logits(first, ids), sampled_logits(second, ids)) for ids in input_ids_list]
    return compare_logits(pairs, tolerance)


@torch.no_grad()
def sampled_logits(model: Any, input_ids: Tensor, positions: int = MAX_POSITIONS) -> Tensor:
    """Logits [P, V] (float32, CPU) at P evenly spaced positions of one sequence [T], the last included."""
    length = input_ids.shape[-1]
    count = min(positions, length)
    kept = torch.linspace(0, length - 1, count, dtype=torch.float64).round().long().to(model.device)
    ids = input_ids.reshape(1, length).to(model.device)
    was_training = model.training
    model.eval()
    try:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
    finally:
        model.train(was_training)
    return torch.as_tensor(logits[0], dtype=torch.float32, device="cpu")


def compare_logits(pairs: Sequence[tuple[Tensor, Tensor]], tolerance: float) -> LogitComparison:
    """Differences over pairs of logits [P, V] each; see `LogitComparison`."""
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        raise ModelError(
            "logits that cannot be compared", "at least one sequence, and models of one vocabulary size"
        )
    first = torch.cat([a for a, _ in pairs])
    second = torch.cat([b for _, b in pairs])
    difference = (first - second).abs()
    return LogitComparison(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        scale=float(first.std()),
        top1_agreement=float((first.argmax(-1) == second.argmax(-1)).float().mean()),
        n_positions=first.shape[0],
        tolerance=tolerance,
    )
