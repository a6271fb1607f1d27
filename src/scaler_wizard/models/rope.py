"""Rotary positions of a loaded model: what they are, and changing them in place.

`apply_rope` makes a model compute exactly what reloading it with the setting's config would compute, so
that candidates are scored without reloading. Editing `config.rope_parameters` after loading would change
nothing: frequencies are computed once, when the rotary module is built; here the module is built anew.

This module does not know which setting is good: scoring is `evals`' work, choosing the recipe's. What a
setting means in a config file is `rope_parameters`' work.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from scaler_wizard.errors import IncompatibleModelError, NotExtendableError
from scaler_wizard.models.rope_formulas import inv_freq_by_hand
from scaler_wizard.models.rope_parameters import (
    BaseRope,
    max_positions,
    not_rotary,
    original_attribute,
    read_base,
    rope_parameters,
    rotary_dim,
)
from scaler_wizard.models.rope_setting import RopeMethod, RopeSetting

__all__ = [
    "BaseRope",
    "RopeMethod",
    "RopeSetting",
    "applied_rope",
    "apply_rope",
    "base_context",
    "base_model",
    "base_rope",
    "inv_freq_by_hand",
    "is_supported",
    "remove_rope",
    "rope_parameters",
    "rotary_dim",
    "rotary_modules",
]

# Kept on the model itself, so that a copy of the model knows them too.
_BASE_ATTRIBUTE = "_scaler_wizard_base_rope"
_SETTING_ATTRIBUTE = "_scaler_wizard_rope_setting"


def base_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a PeftModel, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return cast(nn.Module, inner()) if callable(inner) else model


def rotary_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Rotary embedding modules of a transformers model by qualified name; empty for other models."""
    return {
        name: module
        for name, module in base_model(model).named_modules()
        if hasattr(module, "rope_type")
        and hasattr(module, "config")
        and any(buffer.endswith("inv_freq") for buffer, _ in module.named_buffers(recurse=False))
    }


def base_rope(model: nn.Module) -> BaseRope:
    """The position settings the model was loaded with, however often it has been extended since.

    Raises:
        NotExtendableError: the model has no rotary position embeddings.
    """
    owner = base_model(model)
    remembered = getattr(owner, _BASE_ATTRIBUTE, None)
    if isinstance(remembered, BaseRope):
        return remembered
    return read_base(_text_config(owner))


def base_context(model: nn.Module) -> int:
    """The context length, in tokens, the loaded model was pretrained for (`BaseRope.context`)."""
    return base_rope(model).context


def apply_rope(model: nn.Module, setting: RopeSetting) -> None:
    """Change how a loaded model reads positions, in place; equal to reloading it with that config.

    Works on transformers models and on PeftModels around them, any number of times: each setting
    starts from the base the model was loaded with. `remove_rope` restores that base.
    The new rotary modules are built before anything changes, so a refused setting leaves the model
    as it was.

    With `dynamic`, frequencies depend on the longest position of each forward pass alone. (Left to
    itself, the transformers module keeps those of the longest input so far, which makes a score depend
    on what was scored before it.) A KV cache built step by step still mixes frequencies, as it does in
    transformers.

    Raises:
        NotExtendableError: see `rope_parameters`.
    """
    owner = base_model(model)
    config = _text_config(owner)
    modules = rotary_modules(owner)
    if not modules:
        raise not_rotary(config)
    base = base_rope(owner)
    stretched = _pristine_config(owner)
    parameters = rope_parameters(stretched, setting)
    original = original_attribute(base, parameters, setting)
    _write(stretched, parameters, max_positions(base, setting), original)
    rebuilt = {name: _rebuilt(module, stretched) for name, module in modules.items()}

    setattr(owner, _BASE_ATTRIBUTE, base)
    setattr(owner, _SETTING_ATTRIBUTE, setting)
    _write(config, parameters, max_positions(base, setting), original)
    for name, module in rebuilt.items():
        module.config = config
        parent, _, attribute = name.rpartition(".")
        setattr(owner.get_submodule(parent), attribute, module)


def remove_rope(model: nn.Module) -> None:
    """Restore the position settings the model was loaded with."""
    context = base_context(model)
    apply_rope(model, RopeSetting("none", context, context))


def applied_rope(model: nn.Module) -> RopeSetting | None:
    """The setting last applied to the model; None for a model as it was loaded."""
    setting = getattr(base_model(model), _SETTING_ATTRIBUTE, None)
    return setting if isinstance(setting, RopeSetting) else None


def is_supported(model: nn.Module, setting: RopeSetting) -> bool:
    """True if `apply_rope` would accept the setting; changes nothing."""
    try:
        rope_parameters(_pristine_config(base_model(model)), setting)
    except NotExtendableError:
        return False
    return True


def _pristine_config(owner: nn.Module) -> Any:
    """A copy of the config with the position settings the model was loaded with."""
    base = base_rope(owner)
    config = copy.deepcopy(_text_config(owner))
    _write(config, base.rope_parameters, base.max_position_embeddings, base.original_max_position_embeddings)
    return config


def _text_config(model: nn.Module) -> Any:
    config = cast(Any, model).config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _write(config: Any, parameters: Mapping[str, Any], maximum: int, original: int | None) -> None:
    config.max_position_embeddings = maximum
    if original is not None:
        config.original_max_position_embeddings = original
    config.rope_parameters = copy.deepcopy(dict(parameters))


def _rebuilt(module: nn.Module, config: Any) -> nn.Module:
    """A fresh rotary module of the same class on the same device."""
    device = next(buffer.device for name, buffer in module.named_buffers() if name.endswith("inv_freq"))
    try:
        fresh: nn.Module = type(module)(config).to(device)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise IncompatibleModelError(
            f"{type(module).__name__} cannot be built for these settings ({error})",
            "a rotary module that is built from its config",
            "keep the base context for this model",
        ) from None
    fresh.train(module.training)
    if _uses_dynamic(fresh):
        fresh.register_forward_pre_hook(_forget_longer_inputs)
    return fresh


def _uses_dynamic(module: nn.Module) -> bool:
    kinds = cast(Any, module.rope_type)
    return "dynamic" in (kinds.values() if isinstance(kinds, dict) else [kinds])


def _forget_longer_inputs(module: nn.Module, args: object) -> None:
    """Before each forward: back to the frequencies of a freshly built dynamic module."""
    state = cast(Any, module)
    prefixes = [f"{kind}_" for kind in state.rope_type] if isinstance(state.rope_type, dict) else [""]
    for prefix in prefixes:
        reached = getattr(state, f"{prefix}max_seq_len_cached", state.original_max_seq_len)
        if reached > state.original_max_seq_len:
            fresh = getattr(state, f"{prefix}original_inv_freq").to(
                getattr(state, f"{prefix}inv_freq").device
            )
            state.register_buffer(f"{prefix}inv_freq", fresh, persistent=False)
            setattr(state, f"{prefix}max_seq_len_cached", state.original_max_seq_len)
