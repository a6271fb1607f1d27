"""LoRA adapters seen from outside: folded into the weights, or switched off, for as long as a block lasts.

Folding makes evaluation cost what the base model costs. PEFT's own unmerge subtracts what it added, which
in bfloat16 does not give the old weights back; here they are kept aside, so leaving the block is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from scaler_wizard.errors import IncompatibleModelError

ADAPTER = "default"


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Layers with a LoRA adapter by qualified name; empty for models without."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merged_weight(layer: Any) -> Tensor:
    """W + scaling * B A of one layer, summed in float32 and rounded once to W's format. Same shape as W.

    Raises:
        IncompatibleModelError: the base weight is quantised, so that the sum has no exact place, or the
            adapter acts on some tokens only.
    """
    weight: Tensor = layer.get_base_layer().weight
    if not weight.is_floating_point() or type(weight).__name__ == "Params4bit":
        raise IncompatibleModelError(
            "an adapter on 4-bit weights",
            "16 or 32-bit weights to merge into",
            "save the adapter, load the base without quantize_4bit, load the adapter on it, and merge there",
        )
    if layer.lora_variant:
        raise IncompatibleModelError(
            "an activated adapter (aLoRA) to be merged into the weights",
            "an adapter that acts on every token",
            "serve it as an expert beside the base, or train a plain lora twin and merge that",
        )
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    delta = (b.float() @ a.float()) * layer.scaling[ADAPTER]
    if layer.fan_in_fan_out:
        delta = delta.T
    merged: Tensor = (weight.float() + delta).to(weight.dtype)
    return merged


@contextmanager
def folded(model: Any) -> Iterator[Any]:
    """Evaluate with LoRA adapters merged into the weights; afterwards every weight is bit for bit as before.

    Costs a second copy of the adapted weights while it lasts. Models without LoRA (full training, a
    prefix) and 4-bit bases pass through unchanged. Not for training: gradients of adapters are cut off.
    """
    layers = [] if getattr(base_of(model), "is_quantized", False) else list(lora_layers(model).values())
    kept: list[tuple[Any, Tensor]] = []
    try:
        with torch.no_grad():
            for layer in layers:
                weight = layer.get_base_layer().weight
                merged = merged_weight(layer)
                kept.append((layer, weight.data))
                weight.data = merged
                layer.merged_adapters.append(ADAPTER)
        yield model
    finally:
        for layer, original in kept:
            layer.get_base_layer().weight.data = original
            layer.merged_adapters.clear()


@contextmanager
def adapters_off(model: Any) -> Iterator[Any]:
    """The base model without its adapter, in place: the reference of DPO, and the baseline of evaluation."""
    if not isinstance(model, PeftModel):
        yield model
        return
    assert not any(layer.merged for layer in lora_layers(model).values()), "adapters_off inside folded"
    with model.disable_adapter():
        yield model


def base_of(model: Any) -> Any:
    """The transformers model inside a PeftModel, or the model itself."""
    return cast(Any, model).get_base_model() if isinstance(model, PeftModel) else model
