"""Puts the fused functions in place of PEFT's and transformers' own forward passes, while a step lasts.

Decided first (`plan_fast_path`: which modules qualify, and why the others do not), then installed and taken
out again. Parameters, names and files stay PEFT's. A module that does not qualify keeps its own forward
pass, and one that does falls back to it whenever its adapter is switched off, merged or replaced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.activations import GELUTanh, SiLUActivation

from scaler_wizard.models.alora import PackedAlora, active_rows, active_tokens
from scaler_wizard.training.fused import GELU, GELU_TANH, SILU, Activation, gated_mlp, rms_norm
from scaler_wizard.training.lora_linear import LoraWeights, lora_linear

MLPS = frozenset({
    "LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "Qwen3VLTextMLP", "GemmaMLP", "Gemma2MLP", "Gemma3MLP",
})  # fmt: skip
# weight * round(x / rms(x)), and Gemma's round(x / rms(x) * (1 + weight)).
_NORMS = frozenset({
    "LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Qwen3VLTextRMSNorm", "Phi3RMSNorm",
})  # fmt: skip
_UNIT_OFFSET_NORMS = frozenset({"GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm"})
# FSDP2 has a layer's weights only while that layer's own call lasts; what is kept from before is a shard.
_SHARDED = "weights divided among processes"


@dataclass(frozen=True, slots=True)
class FastPath:
    """Which modules of a model run fused, and why the others do not."""

    linears: dict[str, Any]
    """PEFT layers by name."""
    mlps: dict[str, tuple[Any, Activation]]
    """Gated MLPs by name; their three layers are in `linears` too."""
    norms: dict[str, tuple[Any, bool]]
    """RMSNorms by name, and whether they multiply by 1 + weight."""
    plain: dict[str, str]
    """Candidates that keep their own forward pass: why, by name."""

    def sentence(self) -> str:
        """What runs fused and what does not, for a person: counts, and the reason for each kind of rest."""
        counts = {"adapted layers": self.linears, "MLPs": self.mlps, "norms": self.norms}
        fused = ", ".join(f"{len(found)} {what}" for what, found in counts.items() if found)
        reasons = Counter(self.plain.values())
        rest = "; ".join(f"{count} as the model has them: {why}" for why, count in reasons.items())
        return f"fused: {fused or 'nothing'}" + (f"; {rest}" if rest else "")


def plan_fast_path(model: nn.Module) -> FastPath:
    """Decide for every adapted linear layer, gated MLP and RMSNorm of a model."""
    linears: dict[str, Any] = {}
    mlps: dict[str, tuple[Any, Activation]] = {}
    norms: dict[str, tuple[Any, bool]] = {}
    plain: dict[str, str] = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, LoraLayer):
            if why := _linear_obstacle(module):
                plain[name] = why
            else:
                linears[name] = module
        elif (kind := type(module).__name__) in _NORMS | _UNIT_OFFSET_NORMS:
            if next(module.parameters()).requires_grad:
                plain[name] = "a norm that is trained"
            elif isinstance(next(module.parameters()), DTensor):
                plain[name] = _SHARDED
            else:
                norms[name] = (module, kind in _UNIT_OFFSET_NORMS)
    for name, module in modules.items():
        if type(module).__name__ not in MLPS:
            continue
        act = _activation(module.act_fn)
        if act is None:
            plain[name] = f"activation {type(module.act_fn).__name__}"
        elif not {f"{name}.{part}_proj" for part in ("gate", "up", "down")} <= linears.keys():
            plain[name] = "an MLP that is not adapted as a whole"
        elif any(_hooked(part) for part in module.modules() if part is not module):
            plain[name] = "an MLP with hooks inside"
        else:
            mlps[name] = (module, act)
    return FastPath(linears, mlps, norms, plain)


def _linear_obstacle(layer: Any) -> str | None:
    """Why an adapted layer cannot run fused; None when it can."""
    base = layer.get_base_layer()
    if type(layer) is not PeftLinear or type(base) is not nn.Linear or not base.weight.is_floating_point():
        return f"{type(layer).__module__.rpartition('.')[2]}.{type(layer).__name__} on {type(base).__name__}"
    if list(layer.active_adapters) != list(layer.lora_A) or len(layer.lora_A) != 1:
        return "not exactly one adapter, switched on"
    if isinstance(base.weight, DTensor):
        return _SHARDED
    (name,) = layer.active_adapters
    variant = layer.lora_variant.get(name)
    other = variant is not None and type(variant) is not PackedAlora
    if other or layer.lora_B[name].bias is not None or layer.fan_in_fan_out:
        return "a variant of LoRA"
    if not isinstance(layer.lora_dropout[name], nn.Identity):
        return "dropout"
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return "the base weight is trained too"
    inner = (base, layer.lora_A[name], layer.lora_B[name])
    return "hooks inside the layer" if any(_hooked(part) for part in inner) else None


def _activation(module: nn.Module) -> Activation | None:
    if isinstance(module, SiLUActivation | nn.SiLU):
        return SILU
    # transformers' GELUTanh may be a Python version of the same function; values agree to rounding.
    if isinstance(module, GELUTanh):
        return GELU_TANH
    return GELU if isinstance(module, nn.GELU) and module.approximate == "none" else None


def _hooked(module: nn.Module) -> bool:
    """Whether somebody listens to this module's own call, which a fused call would skip."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class _Site:
    """One adapted layer during one step: its weights cast once, and the question whether they still apply."""

    def __init__(self, layer: Any) -> None:
        (self.adapter,) = layer.active_adapters
        base = layer.get_base_layer()
        self.activated = self.adapter in layer.lora_variant
        self.layer, self.dtype = layer, base.weight.dtype
        self.a, self.b = layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight
        scale = float(layer.scaling[self.adapter])
        # Weights move only between steps, so what is cast here holds until this step ends.
        self.weights = LoraWeights(
            base.weight.detach(),
            None if base.bias is None else base.bias.detach(),
            self.a.detach().to(self.dtype),
            (self.b.detach() * scale).to(self.dtype),
            scale,
        )

    def ready(self, x: Tensor) -> bool:
        """Not so while the adapter is off (the reference model of DPO), merged, or x of another format.

        Nor for an activated adapter that nobody has told its tokens.
        """
        layer = self.layer
        off = layer.disable_adapters or layer.merged or layer.active_adapters != [self.adapter]
        untold = self.activated and active_tokens() is None
        return not (off or untold) and x.dtype == self.dtype

    def active(self, x: Tensor) -> Tensor | None:
        """The tokens of x [..., in] that the adapter acts on [T, 1]; None: all."""
        return active_rows(x) if self.activated else None


def _linear_forward(site: _Site, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        if rest or named or not site.ready(x):
            return plain(x, *rest, **named)
        return lora_linear(x, site.a, site.b, site.weights, site.active(x))

    return forward


def _mlp_forward(sites: list[_Site], act: Activation, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    gate, up, down = sites
    weights = (gate.weights, up.weights, down.weights)
    masters = tuple(item for site in sites for item in (site.a, site.b))

    def forward(x: Tensor) -> Tensor:
        if not all(site.ready(x) for site in sites):
            return plain(x)
        return gated_mlp(x, weights, act, masters, gate.active(x))

    return forward


def _norm_forward(norm: Any, unit_offset: bool, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    eps = norm.eps if unit_offset else norm.variance_epsilon

    def forward(x: Tensor) -> Tensor:
        # Another format of the weight would decide the format of the result.
        if norm.weight.dtype != x.dtype:
            return plain(x)
        return rms_norm(x, norm.weight, eps, unit_offset=unit_offset)

    return forward


@contextmanager
def fast_path(model: nn.Module) -> Iterator[FastPath]:
    """Run what qualifies fused, until the block ends; weights must not change inside it."""
    plan = plan_fast_path(model)
    forwards: list[tuple[Any, Callable[..., Tensor]]] = []
    with torch.no_grad():
        sites = {name: _Site(layer) for name, layer in plan.linears.items()}
    for name, layer in plan.linears.items():
        forwards.append((layer, _linear_forward(sites[name], layer.forward)))
    for name, (mlp, act) in plan.mlps.items():
        parts = [sites[f"{name}.{part}_proj"] for part in ("gate", "up", "down")]
        forwards.append((mlp, _mlp_forward(parts, act, mlp.forward)))
    for norm, unit_offset in plan.norms.values():
        forwards.append((norm, _norm_forward(norm, unit_offset, norm.forward)))
    try:
        # An attribute of the instance hides the method of its class, and deleting it brings that back.
        for module, forward in forwards:
            module.forward = forward
        yield plan
    finally:
        for module, _ in forwards:
            module.__dict__.pop("forward", None)
