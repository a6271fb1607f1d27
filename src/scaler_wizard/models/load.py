"""From a name to a model in memory, refusing everything that could run code or load silently wrong.

Files are judged before transformers sees them: pickle weights, `auto_map`, adapters posing as models
and headers that contradict the configuration are refused, and after loading every weight must have
come from the files. Does not know what the model is for.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, BitsAndBytesConfig

from scaler_wizard.errors import (
    IncompatibleModelError,
    MissingDependencyError,
    ModelError,
    ModelNotFoundError,
    RemoteCodeError,
)
from scaler_wizard.models.rope import RopeSetting, apply_rope
from scaler_wizard.planning.facts import ModelFacts, read_facts
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.safetensors_header import parse_json

# `local_files_only` is what keeps transformers offline; this tells code that a model may bring along.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
MAX_TOKENIZER_CONFIG_BYTES = 10_000_000
# Loaded with their vision towers; of other multimodal models only the language part is.
VISION_ARCHITECTURES = frozenset({"Qwen3VLForConditionalGeneration"})
MAX_LAYERS = 2_000  # every layer is built before its weights are looked for
_LIBRARY_ERRORS = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError,
    StrictDataclassError, HFValidationError,
)  # fmt: skip


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer. `base_context` is in tokens, before any extension."""

    model: Any
    tokenizer: Any
    path: Path
    base_context: int
    device: torch.device
    dtype: torch.dtype


def load_model(
    ref: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool = False,
    rope: RopeSetting | None = None,
    quantize_4bit: bool = False,
    revision: str | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer from this machine. Never downloads.

    Args:
        ref: "seedling", a directory, or a hub name that is in the local cache.
        tokenizer: another tokenizer's directory or hub name; the model's own when None.
        dtype: number format of the weights; of the computation with `quantize_4bit`.
        rope: positions to apply after loading (`apply_rope`).
        quantize_4bit: NF4 with double quantisation (QLoRA, Dettmers et al. 2023); CUDA only.

    Raises:
        ModelNotFoundError: nothing of that name here. UnsafeWeightsError: only pickle weights.
        RemoteCodeError: the model brings code and `trust_remote_code` is off.
        IncompatibleModelError: 4-bit without a GPU, a tokenizer larger than the vocabulary.
        NotExtendableError: see `apply_rope`. ModelError: damaged or incomplete files.
    """
    path = resolve_model(str(ref), revision)
    facts = _scan(path, trust_remote_code)
    target = _device(device)
    quantization = _four_bit(target, dtype) if quantize_4bit else None
    with _offline():
        text = _load_tokenizer(
            path if tokenizer is None else resolve_model(str(tokenizer)), trust_remote_code
        )
        model = _load_weights(path, facts, dtype, target, trust_remote_code, quantization)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(text) > rows:
        raise IncompatibleModelError(
            f"a tokenizer with {len(text):,} tokens for a model with {rows:,} embeddings",
            "a tokenizer the model was trained with",
            "leave model.tokenizer empty to use the model's own",
        )
    if rope is not None:
        apply_rope(model, rope)
    return LoadedModel(model, text, path, facts.base_context, target, dtype)


@contextmanager
def _offline() -> Iterator[None]:
    """The environment says offline while a model loads; a later download of data is not affected."""
    before = {key: os.environ.get(key) for key in OFFLINE}
    os.environ.update(OFFLINE)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _scan(path: Path, trust_remote_code: bool) -> ModelFacts:
    """Judge a directory by its JSON files and safetensors headers alone."""
    if (path / "adapter_config.json").exists():
        # transformers would quietly load whatever base model that file names.
        raise ModelError(
            f"{path} holds an adapter (adapter_config.json)",
            "a whole model",
            "name the base model here and load the adapter on it, or merge the adapter first",
        )
    facts = read_facts(path, allow_remote_code=trust_remote_code)
    tensors = facts.parameters
    if facts.layers > max(tensors, 1) or facts.layers > 10_000:
        raise ModelError(
            f"{path}/config.json claims {facts.layers:,} layers", "as many as there are weights for"
        )
    return facts


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f'"{name}" is no device', '"cpu" or "cuda"', "set model.runtime to auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "a CUDA device was asked for and there is none",
            "a GPU that torch can see",
            "set model.runtime to cpu",
        )
    return device


def _four_bit(device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
    if device.type != "cuda":
        raise IncompatibleModelError(
            f"4-bit weights (qlora) on {device.type}",
            "a CUDA GPU. bitsandbytes can keep 4-bit layers on a CPU, but unpacks each one to 16 or 32 bits "
            "for every product; that is not offered here because it was never measured",
            "set scaling.strategy to lora; in bfloat16 a CPU run needs 2 bytes per parameter, and activation "
            "checkpointing saves most of the rest",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "4-bit weights need bitsandbytes", "the package installed", 'install "scaler-wizard[gpu]"'
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _load_tokenizer(path: Path, trust_remote_code: bool) -> Any:
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"no tokenizer in {path}",
            f"one of {', '.join(TOKENIZER_FILES)}",
            "download the whole model, or set model.tokenizer",
        )
    settings = path / "tokenizer_config.json"
    if settings.is_file():
        if settings.stat().st_size > MAX_TOKENIZER_CONFIG_BYTES:
            raise ModelError(f"{settings} is larger than {MAX_TOKENIZER_CONFIG_BYTES:,} bytes")
        if "auto_map" in parse_json(settings.read_bytes(), settings) and not trust_remote_code:
            raise RemoteCodeError(
                f"the tokenizer in {path} wants to run its own Python code (auto_map)",
                "a tokenizer whose code is part of transformers",
                'set model.trust_remote_code and sign a contract whose scope says "remote code"',
            )
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except _LIBRARY_ERRORS as error:
        raise _unusable(path, "tokenizer", error) from None


def _load_weights(
    path: Path,
    facts: ModelFacts,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
    quantization: BitsAndBytesConfig | None,
) -> Any:
    extra: dict[str, Any] = {}
    if quantization is not None:
        extra = {"quantization_config": quantization, "device_map": {"": device}}
    auto: Any = (
        AutoModelForImageTextToText if facts.architecture in VISION_ARCHITECTURES else AutoModelForCausalLM
    )
    try:
        model, info = auto.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            attn_implementation="sdpa",
            dtype=dtype,
            output_loading_info=True,
            **extra,
        )
    except _LIBRARY_ERRORS as error:
        raise _unusable(path, f"{facts.architecture} model", error) from None
    # A weight without a tensor in the files would keep its random initial values.
    absent = sorted(info["missing_keys"]) + sorted(str(item[0]) for item in info["mismatched_keys"])
    if absent:
        raise ModelError(
            f"{path} lacks {len(absent)} weights or has them in another shape ({', '.join(absent[:3])})",
            "every weight of the architecture that config.json names",
            "download the whole model again",
        )
    if quantization is None:
        model.to(device)
    return model.eval()


def _unusable(path: Path, what: str, error: BaseException) -> ModelError:
    if isinstance(error, FileNotFoundError):
        return ModelNotFoundError(f"{error.filename} is missing from {path}", f"a complete {what}")
    reason = " ".join(str(error).split())[:300]
    return ModelError(
        f"the {what} in {path} cannot be loaded ({type(error).__name__}: {reason})",
        "files of an architecture that transformers knows",
        "download the model again, or check that its architecture is supported",
    )
