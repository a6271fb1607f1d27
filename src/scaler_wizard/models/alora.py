"""Activated LoRA on packed rows: on which tokens of the forward pass at hand the adapter acts.

PEFT's own aLoRA takes one offset a row of a padded batch. A packed row holds many sequences, so here a mask
over its tokens is handed to the layers in a context variable: it lasts as long as the call it belongs to, and
no module remembers it. Parameters, names and files stay PEFT's; where offsets are given (PEFT's own forward
and generate) or no mask is set, PEFT's code runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import ALoraLinearVariant
from torch import Tensor, nn

_ACTIVE: ContextVar[Tensor | None] = ContextVar("active_tokens", default=None)


@contextmanager
def activated(tokens: Tensor | None) -> Iterator[None]:
    """For every forward pass inside: activated adapters act where `tokens` [B, T] bool is True."""
    before = _ACTIVE.set(tokens)
    try:
        yield
    finally:
        _ACTIVE.reset(before)


def active_tokens() -> Tensor | None:
    """The mask of the forward pass at hand [B, T]; None outside `activated`."""
    return _ACTIVE.get()


def active_rows(x: Tensor) -> Tensor:
    """The mask for x [..., in], whose leading axes are the mask's tokens, as a column [T, 1]."""
    tokens = active_tokens()
    assert tokens is not None, "outside `activated`"
    assert tokens.numel() * x.shape[-1] == x.numel(), (tokens.shape, x.shape)
    return tokens.reshape(-1, 1)


def repeated_activation() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` of torch.utils.checkpoint: what is recomputed later sees the mask of now."""
    return nullcontext(), activated(active_tokens())


class PackedAlora(ALoraLinearVariant):  # type: ignore[misc]  # PEFT is untyped
    """PEFT's aLoRA that also understands `activated`."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """`result` [..., out] of the base layer plus scaling * B A dropout(x) on the active tokens."""
        if active_tokens() is None or kwargs.get("alora_offsets") is not None:
            plain: Tensor = ALoraLinearVariant.forward(module, active_adapter, x, result, **kwargs)
            return plain
        a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        low = a(module.lora_dropout[active_adapter](x.to(a.weight.dtype)))
        delta = b(low * active_rows(x).view(*x.shape[:-1], 1)) * module.scaling[active_adapter]
        total: Tensor = result + delta.to(result.dtype)
        return total


def take_packed_rows(model: nn.Module) -> None:
    """Let the aLoRA layers of a PEFT model understand `activated`."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name, variant in layer.lora_variant.items():
                if type(variant) is ALoraLinearVariant:
                    layer.lora_variant[name] = PackedAlora()


def is_activated(model: Any) -> bool:
    """Whether the model carries an adapter that acts from its invocation tokens on."""
    configs = getattr(model, "peft_config", None) or {}
    return any(getattr(config, "alora_invocation_tokens", None) for config in configs.values())
