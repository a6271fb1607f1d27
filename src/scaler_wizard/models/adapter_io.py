"""Adapters as tensors and as files, in PEFT's format: adapter_config.json and adapter_model.safetensors.

A file is hostile input. Of a configuration only the fields that this project uses are read; a field that
changes what the tensors mean and is not supported is refused by name, never ignored.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scaler_wizard.errors import ModelError, ModelNotFoundError, UnsafeWeightsError
from scaler_wizard.models.alora import take_packed_rows
from scaler_wizard.models.tensor_files import Files, TensorFile, write_files
from scaler_wizard.planning.safetensors_header import parse_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 4096
MAX_VIRTUAL_TOKENS = 65_536
MAX_INVOCATION_TOKENS = 256
_KINDS: dict[str, type[Any]] = {"LORA": LoraConfig, "PREFIX_TUNING": PrefixTuningConfig}
# Fields that are rebuilt from the model, or that only describe where the file comes from.
_DESCRIPTIVE = frozenset({
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "num_transformer_submodules", "num_attention_heads", "num_layers", "token_dim",
    "init_lora_weights", "ensure_weight_tying", "encoder_hidden_size",
})  # fmt: skip
_READ = {
    "LORA": frozenset(
        {
            "r",
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "use_rslora",
            "fan_in_fan_out",
            "alora_invocation_tokens",
        }
    ),
    "PREFIX_TUNING": frozenset({"num_virtual_tokens"}),
}


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """Adapter tensors by PEFT's file names, as contiguous copies on the CPU in the format they train in."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in sorted(state.items())}


def load_adapter_state(model: PeftModel, tensors: dict[str, Tensor]) -> None:
    """Put tensors named as `adapter_state` names them into the model's adapter.

    Raises:
        ModelError: a tensor is missing, unexpected, or of another shape; nothing was changed then.
    """
    expected = {name: tuple(value.shape) for name, value in _state_views(model).items()}
    missing, unexpected = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    wrong = [name for name in expected if name in tensors and tuple(tensors[name].shape) != expected[name]]
    if missing or unexpected or wrong:
        found = [
            f"{len(names)} {what} ({', '.join(names[:2])})"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
            if names
        ]
        raise ModelError(
            f"adapter tensors that do not fit: {'; '.join(found)}",
            f"the {len(expected)} tensors of this model's adapter",
            "use an adapter that was trained on this model with these settings",
        )
    set_peft_model_state_dict(model, tensors)


def save_adapter(model: PeftModel, directory: Path) -> None:
    """Write the adapter in PEFT's format; equal adapters give equal bytes. `directory` may exist.

    Raises:
        OSError: the disk refused.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_files(adapter_files(model), directory)


def adapter_files(model: PeftModel) -> Files:
    """What `save_adapter` writes, the tensors still the model's own."""
    config = {key: _plain(value) for key, value in model.peft_config["default"].to_dict().items()}
    config["inference_mode"] = True
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    weights = TensorFile(_state_views(model), {"format": "pt"})
    return {WEIGHTS_FILE: weights, CONFIG_FILE: text.encode()}


def load_adapter(model: Any, directory: Path, *, trainable: bool = True) -> PeftModel:
    """Attach an adapter from PEFT's files to its base model.

    Raises:
        ModelNotFoundError: no adapter there. UnsafeWeightsError: only pickle weights.
        ModelError: another kind of adapter, an unsupported setting, tensors that do not fit, NaN.
    """
    if isinstance(model, PeftModel):
        raise ModelError("an adapter on a model that has one already", "a base model")
    config = read_adapter_config(directory)
    tensors = read_adapter_tensors(directory)
    try:
        wrapped = wrap(model, config, seed=0)
    except ValueError as error:
        raise ModelError(
            f"the adapter in {directory} does not fit this model ({str(error)[:200]})",
            f"layers of a {model.config.model_type} model",
            "use the base model the adapter was trained on",
        ) from None
    try:
        load_adapter_state(wrapped, tensors)
    except ModelError:
        if config.peft_type == "LORA":
            wrapped.unload()  # leaves the base model without half an adapter
        raise
    if not trainable:
        wrapped.requires_grad_(False)
    return wrapped.eval()


def wrap(model: Any, config: Any, seed: int) -> PeftModel:
    """PEFT's model around a base. Initial values depend on the seed; the caller's random state stays."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT 0.21 still asks transformers 5 by the old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        torch.manual_seed(seed)
        wrapped: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=True)
        take_packed_rows(wrapped)
        return wrapped


def read_adapter_config(directory: Path) -> Any:
    """The PEFT configuration of a directory, built from checked fields only.

    Raises:
        ModelNotFoundError: no adapter_config.json. ModelError: anything that is not a plain LoRA or prefix.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise ModelNotFoundError(f"no adapter in {directory}", f"{CONFIG_FILE} and {WEIGHTS_FILE}")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"{path} is larger than {MAX_CONFIG_BYTES:,} bytes", "an adapter's configuration")
    values = parse_json(path.read_bytes(), path)
    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ModelError(f"an adapter of type {str(kind)[:40]!r} in {directory}", " or ".join(sorted(_KINDS)))
    _refuse_unsupported(values, kind, path)
    if kind == "LORA":
        return _lora_config(values, path)
    tokens = values.get("num_virtual_tokens")
    _check(path, "num_virtual_tokens", tokens, type(tokens) is int and 0 < tokens <= MAX_VIRTUAL_TOKENS)
    return PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=tokens)


def _lora_config(values: dict[str, Any], path: Path) -> LoraConfig:
    rank, alpha = values.get("r"), values.get("lora_alpha", 8)
    dropout, targets = values.get("lora_dropout", 0.0), values.get("target_modules")
    _check(path, "r", rank, type(rank) is int and 0 < rank <= MAX_RANK)
    _check(path, "lora_alpha", alpha, type(alpha) in (int, float) and 0 < alpha < 1e6)
    _check(path, "lora_dropout", dropout, type(dropout) in (int, float) and 0 <= dropout < 1)
    # A text is a regular expression to PEFT (one that may never end), save for this one.
    named = isinstance(targets, list) and targets and all(isinstance(item, str) for item in targets)
    _check(path, "target_modules", targets, bool(named) or targets == "all-linear")
    for flag in ("use_rslora", "fan_in_fan_out"):
        _check(path, flag, values.get(flag, False), isinstance(values.get(flag, False), bool))
    invocation = values.get("alora_invocation_tokens")
    _check(path, "alora_invocation_tokens", invocation, invocation is None or _is_invocation(invocation))
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets,
        use_rslora=values.get("use_rslora", False), fan_in_fan_out=values.get("fan_in_fan_out", False),
        alora_invocation_tokens=invocation,
    )  # fmt: skip


def _is_invocation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_INVOCATION_TOKENS
        and all(type(item) is int and 0 <= item < 2**31 for item in value)
    )


def _refuse_unsupported(values: dict[str, Any], kind: str, path: Path) -> None:
    """A field that is neither read nor descriptive must have the value PEFT gives it by default."""
    defaults = {
        field.name: field.default if field.default is not MISSING else None for field in fields(_KINDS[kind])
    }
    for key, value in values.items():
        if key in _DESCRIPTIVE or key in _READ[kind] or not value or value == defaults.get(key):
            continue
        raise ModelError(
            f'{path} sets "{key}" to {str(value)[:60]!r}',
            "a plain LoRA or prefix adapter",
            "merge the adapter with the tool that made it, and load the merged model",
        )


def _check(path: Path, key: str, value: Any, ok: bool) -> None:
    if not ok:
        raise ModelError(f"{path} sets {key} to {str(value)[:60]!r}", "a value PEFT writes there")


def read_adapter_tensors(directory: Path) -> dict[str, Tensor]:
    """The tensors of adapter_model.safetensors, each a finite floating-point one.

    Raises:
        ModelNotFoundError, UnsafeWeightsError, ModelError: see `load_adapter`.
    """
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        if (directory / "adapter_model.bin").exists():
            raise UnsafeWeightsError(
                f"the adapter in {directory} is a pickle file (adapter_model.bin)",
                f"{WEIGHTS_FILE}: loading a pickle can run any code",
                "save the adapter again as safetensors",
            )
        raise ModelNotFoundError(f"no {WEIGHTS_FILE} in {directory}", "the adapter's weights")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({str(error)[:200]})", "a complete safetensors file"
        ) from None
    bad = [
        name for name, value in tensors.items() if not value.is_floating_point() or not value.isfinite().all()
    ]
    if bad:
        raise ModelError(f'{path}: "{bad[0]}" holds values that are not finite numbers', "a trained adapter")
    return tensors


def _state_views(model: PeftModel) -> dict[str, Tensor]:
    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def _plain(value: Any) -> Any:
    """JSON with a stable order: PEFT keeps target_modules in a set, whose order changes between processes."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int | float | bool | list) else str(value)
