"""Which way a model's context can be extended: one protocol, one implementation per position scheme.

Rotary embeddings are the scheme that can be stretched without new weights. A scheme of another kind
joins by implementing `ContextExtension` and adding a line to `EXTENSIONS`: for ALiBi (Press et al.
2022) that would scale the slopes by L / T, `handles` being `config.alibi` or model types bloom and
mpt. Learned absolute positions have no rows beyond their table and stay refused.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from scaler_wizard.errors import NotExtendableError
from scaler_wizard.models.rope import (
    RopeMethod,
    RopeSetting,
    apply_rope,
    base_context,
    base_model,
    is_supported,
    rotary_modules,
)

UNTRAINED_METHODS: tuple[RopeMethod, ...] = ("none", "linear", "ntk", "dynamic", "yarn", "llama3")


class ContextExtension(Protocol):
    """How one position scheme reaches a longer context. Lengths are in tokens."""

    name: str

    def handles(self, model: nn.Module) -> bool:
        """True if the model uses this position scheme."""
        ...

    def base_context(self, model: nn.Module) -> int:
        """The context the model was loaded with."""
        ...

    def candidates(self, model: nn.Module, target_context: int) -> list[RopeSetting]:
        """Settings worth scoring at that length, counted from the base context."""
        ...

    def apply(self, model: nn.Module, setting: RopeSetting) -> None:
        """Apply one setting in place."""
        ...


class RopeExtension:
    """Rotary position embeddings."""

    name = "rope"

    def handles(self, model: nn.Module) -> bool:
        return bool(rotary_modules(model))

    def base_context(self, model: nn.Module) -> int:
        return base_context(model)

    def candidates(self, model: nn.Module, target_context: int) -> list[RopeSetting]:
        """Every method that needs no published factors; only its own where a scaling was trained in."""
        settings = [RopeSetting(method, base_context(model), target_context) for method in UNTRAINED_METHODS]
        return [setting for setting in settings if is_supported(model, setting)]

    def apply(self, model: nn.Module, setting: RopeSetting) -> None:
        apply_rope(model, setting)


EXTENSIONS: dict[str, ContextExtension] = {"rope": RopeExtension()}


def extension_for(model: nn.Module) -> ContextExtension:
    """The extension that handles a model.

    Raises:
        NotExtendableError: none does; the message names the model's position scheme.
    """
    for extension in EXTENSIONS.values():
        if extension.handles(model):
            return extension
    config: Any = base_model(model).config
    raise NotExtendableError(
        f"a {config.model_type} model with {_scheme(base_model(model), config)}",
        "rotary position embeddings (RoPE)",
        "keep the base context for this model, or choose a RoPE model (Llama, Qwen, Mistral, Phi, Gemma)",
    )


def _scheme(model: nn.Module, config: Any) -> str:
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "ALiBi position biases"
    learned = {"wpe", "embed_positions", "position_embeddings"}
    if any(name.rpartition(".")[2] in learned for name, _ in model.named_modules()):
        return "learned absolute positions, which end with their table"
    return "no rotary embedding module"
