"""What a `RopeSetting` means as the `rope_parameters` of transformers 5. Pure: config, setting -> dict.

Traps of that format, each a test:

- yarn, llama3 and longrope read the original length from `original_max_position_embeddings`, which
  defaults to the *raised* `max_position_embeddings`; it is always written here;
- `dynamic` starts to scale beyond `max_position_embeddings`, so there the maximum stays as it was;
- a replaced dict without `rope_theta` falls back to another base or fails; it is always kept;
- static NTK does not exist there; it is a changed `rope_theta`;
- Phi-3 accepts only `default` and `longrope` (and its loader turns `yarn` into `longrope`): every static
  method is written there as the longrope factors that give the same frequencies.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from scaler_wizard.errors import NotExtendableError
from scaler_wizard.models.rope_formulas import inv_freq_by_hand, ntk_base
from scaler_wizard.models.rope_setting import RopeSetting

_STATIC_RATIO = ("linear", "yarn", "llama3")


@dataclass(frozen=True)
class BaseRope:
    """A model's position settings as it was loaded; every extension is counted from these."""

    rope_parameters: dict[str, Any]
    max_position_embeddings: int
    original_max_position_embeddings: int | None

    @property
    def context(self) -> int:
        """Tokens the model was pretrained for: the length its own scaling counts from, if it has one."""
        flat = self.flat
        if flat.get("rope_type", "default") == "default":
            return self.max_position_embeddings
        own = flat.get("original_max_position_embeddings") or self.original_max_position_embeddings
        return int(own or self.max_position_embeddings)

    @property
    def flat(self) -> dict[str, Any]:
        """The parameters themselves, or those of full attention where there is one dict per layer type."""
        own = self.rope_parameters
        return dict(own.get("full_attention") or {}) if _is_nested(own) else own


def max_positions(base: BaseRope, setting: RopeSetting) -> int:
    """`max_position_embeddings` of a setting: the target, but the base's where dynamic needs it.

    Never below what the base was made for.
    """
    if setting.method == "dynamic":
        return base.max_position_embeddings
    return max(setting.target_context, base.max_position_embeddings)


def rope_parameters(config: Any, setting: RopeSetting) -> dict[str, Any]:
    """The `rope_parameters` dict of transformers 5 for a setting, from the *base* model's config.

    `rope_theta` and `partial_rotary_factor` of the base are kept and the original length is written
    out. Where a config holds one dict per layer type (Gemma 3), only full attention is extended:
    sliding layers never see distances beyond their window.

    Raises:
        NotExtendableError: no rotary parameters; a scaling of another kind trained in; `dynamic` on
            an architecture that cannot state it; an original context that is not the config's.
    """
    base = read_base(config)
    if setting.original_context != base.context:
        raise NotExtendableError(
            f"a RoPE setting counted from {setting.original_context} tokens",
            f"the base model's own context, {base.context} tokens",
            "count every factor from the base context; factors are never compounded",
        )
    own = base.rope_parameters
    if not _is_nested(own):
        return _checked(config, base, setting, _flat_parameters(config, own, setting))
    if not isinstance(own.get("full_attention"), dict):
        raise NotExtendableError(
            f"rotary parameters per layer type: {', '.join(sorted(own))}",
            "a flat dict, or one with full_attention",
            "keep the base context for this model",
        )
    extended = _flat_parameters(config, own["full_attention"], setting)
    return _checked(config, base, setting, {**copy.deepcopy(own), "full_attention": extended})


def not_rotary(config: Any) -> NotExtendableError:
    return NotExtendableError(
        f"a {getattr(config, 'model_type', 'model')} without rotary position embeddings",
        "a model with RoPE (Llama, Qwen, Mistral, Phi, Gemma, ...)",
        "keep the base context for this model, or choose another one",
    )


def read_base(config: Any) -> BaseRope:
    own = getattr(config, "rope_parameters", None)
    if not own or getattr(config, "alibi", False):
        raise not_rotary(config)
    return BaseRope(
        copy.deepcopy(own),
        int(config.max_position_embeddings),
        getattr(config, "original_max_position_embeddings", None),
    )


def _is_nested(parameters: Mapping[str, Any]) -> bool:
    return "rope_type" not in parameters and any(isinstance(value, dict) for value in parameters.values())


def rotary_dim(config: Any, parameters: Mapping[str, Any]) -> int:
    """Number of head dimensions that are rotated (head_dim x partial_rotary_factor)."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * (parameters.get("partial_rotary_factor") or 1.0))


def _flat_parameters(config: Any, own: Mapping[str, Any], setting: RopeSetting) -> dict[str, Any]:
    """Parameters of one rotary embedding whose base parameters are `own`."""
    if setting.method == "none":
        return copy.deepcopy(dict(own))
    if own.get("rope_type", "default") != "default":
        return _rescaled(config, own, setting)
    kept = {key: own[key] for key in ("rope_theta", "partial_rotary_factor") if own.get(key) is not None}
    if setting.method == "longrope":
        return {**kept, **_longrope(config, own, setting)}
    if setting.factor == 1.0:
        return copy.deepcopy(dict(own))
    if setting.method == "ntk":
        theta = ntk_base(own["rope_theta"], setting.factor, rotary_dim(config, own))
        return {**kept, "rope_type": "default", "rope_theta": theta}
    original = {"original_max_position_embeddings": setting.original_context}
    scaled: dict[str, Any] = {**kept, "rope_type": setting.method, "factor": setting.factor}
    if setting.method == "yarn":
        scaled |= original | {"beta_fast": setting.beta_fast, "beta_slow": setting.beta_slow}
        if setting.attention_factor is not None:
            scaled["attention_factor"] = setting.attention_factor
    if setting.method == "llama3":
        scaled |= original | {
            "low_freq_factor": setting.low_freq_factor, "high_freq_factor": setting.high_freq_factor
        }  # fmt: skip
    return scaled


def _longrope(config: Any, own: Mapping[str, Any], setting: RopeSetting) -> dict[str, Any]:
    expected = rotary_dim(config, own) // 2
    found = len(setting.short_factor), len(setting.long_factor)
    if found != (expected, expected):
        raise NotExtendableError(
            f"LongRoPE factors of lengths {found[0]} and {found[1]}",
            f"{expected} values each (rotary dim / 2)",
        )
    written: dict[str, Any] = {
        "rope_type": "longrope",
        "factor": setting.factor,
        "original_max_position_embeddings": setting.original_context,
        "short_factor": list(setting.short_factor),
        "long_factor": list(setting.long_factor),
    }
    if setting.attention_factor is not None:
        written["attention_factor"] = setting.attention_factor
    return written


def _rescaled(config: Any, own: Mapping[str, Any], setting: RopeSetting) -> dict[str, Any]:
    """A model that was trained with a scaling keeps its kind; the factor grows beyond its maximum only."""
    if own["rope_type"] != setting.method:
        raise NotExtendableError(
            f"a model trained with {own['rope_type']} scaling, and {setting.method} asked for",
            f"{own['rope_type']} or none: replacing a scaling that was trained in would undo it",
            f"set rope_method to {own['rope_type']}, none or auto",
        )
    maximum = config.max_position_embeddings
    if setting.target_context <= maximum:
        return copy.deepcopy(dict(own))
    own_factor = own.get("factor") or maximum / setting.original_context
    grown = {**copy.deepcopy(dict(own)), "factor": own_factor * setting.target_context / maximum}
    if setting.method == "longrope":
        grown |= _longrope(config, own, setting) | {"factor": grown["factor"]}
    return grown


def _checked(config: Any, base: BaseRope, setting: RopeSetting, parameters: dict[str, Any]) -> dict[str, Any]:
    """`parameters`, or the same frequencies as longrope where the config would not read them back.

    Phi-3 refuses every type but default and longrope, and its loader renames yarn.
    """
    if setting.method == "none" or _survives(config, base, setting, parameters):
        return parameters
    if setting.method not in _STATIC_RATIO or _is_nested(parameters):
        raise NotExtendableError(
            f"{setting.method} on a {config.model_type} model",
            "a method whose parameters this architecture can save and load",
            "use ntk, linear, yarn, llama3 or longrope for this model",
        )
    theta, dim = parameters["rope_theta"], rotary_dim(config, parameters)
    plain, _ = inv_freq_by_hand("none", base=theta, rotary_dim=dim, original_context=setting.original_context)
    scaled, attention = inv_freq_by_hand(
        setting.method, base=theta, rotary_dim=dim, original_context=setting.original_context,
        factor=setting.factor, beta_fast=setting.beta_fast, beta_slow=setting.beta_slow,
        low_freq_factor=setting.low_freq_factor, high_freq_factor=setting.high_freq_factor,
        attention_factor=setting.attention_factor,
    )  # fmt: skip
    ratios = [float(value) for value in plain / scaled]
    kept: dict[str, Any] = {
        key: parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters
    }
    written: dict[str, Any] = {
        **kept, "rope_type": "longrope", "factor": setting.factor, "attention_factor": attention,
        "original_max_position_embeddings": setting.original_context,
        "short_factor": ratios, "long_factor": ratios,
    }  # fmt: skip
    if not _survives(config, base, setting, written):
        raise NotExtendableError(f"a {config.model_type} config that cannot state {setting.method}")
    return written


def _survives(config: Any, base: BaseRope, setting: RopeSetting, parameters: dict[str, Any]) -> bool:
    """True if writing and reading the config gives these very parameters back."""
    plain = config.to_dict()
    plain["rope_parameters"] = copy.deepcopy(parameters)
    plain["max_position_embeddings"] = max_positions(base, setting)
    original = original_attribute(base, parameters, setting)
    if original is not None:
        plain["original_max_position_embeddings"] = original
    try:
        with _quiet_transformers():
            read = type(config).from_dict(plain)
    except (StrictDataclassError, ValueError, KeyError, TypeError):
        return False
    return bool(read.rope_parameters == parameters)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Config validation logs what is only being tried out."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def original_attribute(base: BaseRope, parameters: Mapping[str, Any], setting: RopeSetting) -> int | None:
    """The config attribute of that name, which wins over the dict's entry where it exists (Phi-3)."""
    if base.original_max_position_embeddings is None:
        return None
    if setting.method == "none" or parameters.get("rope_type") == "default":
        return base.original_max_position_embeddings
    return int(parameters.get("original_max_position_embeddings", setting.original_context))
