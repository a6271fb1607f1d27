"""Facts about a model, read from `config.json` and safetensors headers: no weights, no torch.

Any decoder architecture works, because the shapes of its linear layers come from the weights' own
headers and not from a formula per architecture. Does not know how a model is trained or extended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scaler_wizard.errors import (
    IncompatibleModelError,
    ModelError,
    ModelNotFoundError,
    RemoteCodeError,
    UnsafeWeightsError,
)
from scaler_wizard.planning.safetensors_header import TensorInfo, parse_json, read_header

Positions = Literal["rope", "alibi", "learned", "unknown"]

MAX_JSON_BYTES = 50_000_000
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ALIBI_TYPES = frozenset({"bloom", "mpt"})
LEARNED_TYPES = frozenset({"gpt2", "opt", "gpt_neo", "gpt_bigcode", "biogpt", "xglm", "openai-gpt"})
# Configurations that may leave rope_theta to the library's default and still are rotary.
ROPE_TYPES = frozenset({
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2", "gemma3",
    "gemma3_text", "phi", "phi3", "smollm3", "olmo", "olmo2", "olmo3", "stablelm", "starcoder2", "gpt_neox",
    "gptj", "codegen", "cohere", "cohere2", "granite", "falcon", "persimmon", "deepseek_v3", "glm", "glm4",
})  # fmt: skip
_POSITION_TABLE = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?|pos_embed)\.weight$")
_LAYER_LINEAR = re.compile(r"\.\d+\.(?:.*\.)?([A-Za-z_][A-Za-z0-9_]*)\.weight$")
_NOT_LANGUAGE = re.compile(r"(vision|visual|image|audio|speech)", re.IGNORECASE)
_ROUTERS = frozenset({"router", "gate"})


@dataclass(frozen=True)
class LinearShape:
    """One kind of linear layer: `count` modules named `*.suffix` that map `inputs` to `outputs` features."""

    suffix: str
    inputs: int
    outputs: int
    count: int


@dataclass(frozen=True)
class Rope:
    """Rotary position settings as the configuration states them."""

    theta: float
    type: str
    factor: float
    partial_rotary_factor: float


@dataclass(frozen=True)
class ModelFacts:
    """What planning needs to know of a model. Sizes are in elements, tokens and bytes."""

    name: str
    path: str
    architecture: str
    model_type: str
    parameters: int
    dtype: str
    """Number format that holds most of the stored weights, as safetensors names it: F32, BF16, F16."""
    weight_bytes: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    base_context: int
    """Tokens the model was trained for before any rotary scaling."""
    max_context: int
    """Tokens the configuration claims (max_position_embeddings)."""
    positions: Positions
    rope: Rope | None
    linear_shapes: tuple[LinearShape, ...]
    """Every adaptable linear layer inside the decoder's layers, grouped by name and shape."""
    config_sha256: str

    @property
    def has_rope(self) -> bool:
        """Whether positions are rotary, so that the context can be extended."""
        return self.positions == "rope"

    @property
    def q_dim(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key heads together (values are as wide)."""
        return self.kv_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Parameters of the adaptable linear layers: what 4-bit quantisation compresses."""
        return sum(shape.inputs * shape.outputs * shape.count for shape in self.linear_shapes)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Names of the adaptable linear layers, in the order of the model, each once."""
        return tuple(dict.fromkeys(shape.suffix for shape in self.linear_shapes))

    def shapes_of(self, target_modules: Sequence[str] | None) -> tuple[LinearShape, ...]:
        """Shapes of the named layers; all of them for None.

        Raises:
            IncompatibleModelError: a name that no layer of this model has.
        """
        if target_modules is None:
            return self.linear_shapes
        for name in target_modules:
            if name not in self.suffixes:
                raise IncompatibleModelError(
                    f'the model {self.name} has no linear layer named "{name}"',
                    f"some of: {', '.join(self.suffixes)}",
                    "set scaling.lora.target_modules to such names, or to all-linear",
                )
        return tuple(shape for shape in self.linear_shapes if shape.suffix in target_modules)


def read_facts(path: Path | str, *, allow_remote_code: bool = False, name: str | None = None) -> ModelFacts:
    """Facts of the model in one directory.

    Args:
        path: directory with `config.json` and safetensors weights.
        allow_remote_code: accept a configuration that names its own Python code (which is not run here).
        name: what to call the model; the directory's name by default.

    Raises:
        ModelNotFoundError: no directory, configuration or weights there, or a shard is missing.
        UnsafeWeightsError: only pickle weights are there.
        RemoteCodeError: the configuration has `auto_map` and remote code is not allowed.
        IncompatibleModelError: weights that are quantised already.
        ModelError: a file that is damaged or contradicts itself.
    """
    folder = Path(path)
    config_bytes = _read_small(folder / "config.json", folder)
    config = parse_json(config_bytes, folder / "config.json")
    _refuse(config, folder, allow_remote_code)
    text_config = config.get("text_config")
    inner: Mapping[str, Any] = {**config, **text_config} if isinstance(text_config, dict) else config
    tensors = _language_tensors(_all_headers(folder))
    return _assemble(
        name or folder.name, folder, config, inner, tensors, hashlib.sha256(config_bytes).hexdigest()
    )


def facts_digest(facts: ModelFacts) -> str:
    """SHA-256 of everything but where the model lies, so that a copy has the same digest."""
    fields = {key: value for key, value in dataclasses.asdict(facts).items() if key not in ("path", "name")}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _refuse(config: Mapping[str, Any], folder: Path, allow_remote_code: bool) -> None:
    if "auto_map" in config and not allow_remote_code:
        raise RemoteCodeError(
            f"the configuration in {folder} wants to run its own Python code (auto_map)",
            "a model whose code is part of transformers",
            'set model.trust_remote_code and sign a contract whose scope says "remote code"; or, where '
            "transformers knows the architecture anyway (Phi-3), delete auto_map from config.json",
        )
    if config.get("quantization_config"):
        raise IncompatibleModelError(
            f"the weights in {folder} are quantised already",
            "the model's original 16 or 32-bit weights",
            "name the original model; scaling.strategy qlora quantises it while loading",
        )


def _read_small(path: Path, folder: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path} is larger than {MAX_JSON_BYTES:,} bytes", "a model's JSON file")
        return path.read_bytes()
    except OSError as error:
        raise ModelNotFoundError(
            f"no model in {folder}: {path.name} cannot be read ({error.strerror})",
            "a directory with config.json and safetensors weights",
            "check model.base_model",
        ) from None


def _all_headers(folder: Path) -> list[TensorInfo]:
    """Tensors of the single file, or of every shard that the index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return list(read_header(single))
    if not index.is_file():
        pickles = [file.name for pattern in PICKLES for file in folder.glob(pattern)]
        if pickles:
            raise UnsafeWeightsError(
                f"the weights in {folder} are pickle files ({', '.join(sorted(pickles)[:3])})",
                "model.safetensors: loading a pickle can run any code",
                "use a safetensors revision of the model; most hub models have one",
            )
        raise ModelNotFoundError(
            f"no weights in {folder}", "model.safetensors or its index", "download the whole model"
        )
    weight_map = parse_json(_read_small(index, folder), index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} names no weights", 'a "weight_map"', "download the model again")
    shards = sorted({str(file) for file in weight_map.values()})
    for shard in shards:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors", shard):
            raise ModelError(
                f"{index} names the shard {shard[:80]!r}", "a plain safetensors file name beside it"
            )
    tensors = [info for shard in shards for info in read_header(folder / shard)]
    names = {info.name for info in tensors}
    if len(names) != len(tensors) or names != set(weight_map):
        raise ModelError(
            f"the shards in {folder} do not hold exactly the tensors of their index",
            "every tensor once",
            "download the model again",
        )
    return tensors


def _language_tensors(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """Without vision and audio towers: they are neither trained nor loaded here."""
    return [info for info in tensors if not _NOT_LANGUAGE.search(info.name)]


def _assemble(
    name: str,
    folder: Path,
    config: Mapping[str, Any],
    inner: Mapping[str, Any],
    tensors: Sequence[TensorInfo],
    sha256: str,
) -> ModelFacts:
    hidden = _number(inner, folder, "hidden_size", "n_embd", "d_model")
    layers = _number(inner, folder, "num_hidden_layers", "n_layer", "n_layers")
    heads = _number(inner, folder, "num_attention_heads", "n_head", "n_heads")
    kv_heads = _number(inner, folder, "num_key_value_heads", default=heads)
    model_type = str(inner.get("model_type", ""))
    shapes = _linear_shapes(tensors, transposed=model_type == "gpt2")
    tied = _tied(inner, tensors)
    kept = [info for info in tensors if not (tied and info.name.endswith("lm_head.weight"))]
    formats = Counter[str]()
    for info in kept:
        formats[info.dtype] += info.nbytes
    positions = _positions(inner, model_type, tensors)
    rope, original = _rope(inner)
    claimed = _number(
        inner, folder, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", default=2048
    )
    architectures = config.get("architectures")
    return ModelFacts(
        name=name,
        path=str(folder),
        architecture=str(architectures[0])
        if isinstance(architectures, list) and architectures
        else "unknown",
        model_type=model_type,
        parameters=sum(info.numel for info in kept),
        dtype=formats.most_common(1)[0][0] if formats else "F32",
        weight_bytes=sum(info.nbytes for info in kept),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_number(inner, folder, "head_dim", default=max(1, hidden // heads)),
        intermediate_size=_number(
            inner, folder, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden
        ),
        vocab_size=_number(inner, folder, "vocab_size"),
        tie_word_embeddings=tied,
        base_context=original or claimed,
        max_context=claimed,
        positions=positions,
        rope=rope if positions == "rope" else None,
        linear_shapes=shapes,
        config_sha256=sha256,
    )


def _number(config: Mapping[str, Any], folder: Path, *keys: str, default: int | None = None) -> int:
    """The first of `keys` that is set; sizes beyond 2**31 are refused as nonsense."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if type(value) is not int or not 0 < value < 2**31:
            raise ModelError(
                f"{key} in {folder}/config.json is {str(value)[:60]!r}", "a positive whole number"
            )
        return value
    if default is None:
        raise ModelError(
            f"{folder}/config.json does not say {keys[0]}", "a decoder language model's configuration"
        )
    return default


def _linear_shapes(tensors: Iterable[TensorInfo], *, transposed: bool) -> tuple[LinearShape, ...]:
    """Adaptable linears. torch.nn.Linear stores (out, in); GPT-2's Conv1D stores (in, out)."""
    counts: dict[tuple[str, int, int], int] = {}
    for info in tensors:
        match = _LAYER_LINEAR.search(info.name)
        if match is None or len(info.shape) != 2 or 1 in info.shape:
            continue
        suffix = match[1]
        if suffix in _ROUTERS or "norm" in suffix or "embed" in suffix:
            continue
        outputs, inputs = reversed(info.shape) if transposed else info.shape
        key = (suffix, inputs, outputs)
        counts[key] = counts.get(key, 0) + 1
    order = list(dict.fromkeys(suffix for suffix, _, _ in counts))
    items = sorted(counts.items(), key=lambda item: (_block_order(item[0][0], order), item[0]))
    return tuple(LinearShape(*key, count) for key, count in items)


_USUAL_ORDER = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "o_proj", "gate_proj", "up_proj",
    "gate_up_proj", "c_fc", "down_proj", "c_proj",
)  # fmt: skip


def _block_order(suffix: str, seen: Sequence[str]) -> int:
    """Files list tensors by byte or by name; people expect q, k, v, o, gate, up, down."""
    if suffix in _USUAL_ORDER:
        return _USUAL_ORDER.index(suffix)
    return len(_USUAL_ORDER) + seen.index(suffix)


def _tied(config: Mapping[str, Any], tensors: Iterable[TensorInfo]) -> bool:
    """As configured; where it is silent, a model without its own LM head must reuse its embeddings."""
    value = config.get("tie_word_embeddings")
    if isinstance(value, bool):
        return value
    return not any(info.name.endswith(("lm_head.weight", "embed_out.weight")) for info in tensors)


def _positions(config: Mapping[str, Any], model_type: str, tensors: Iterable[TensorInfo]) -> Positions:
    attention = config.get("attn_config")
    if config.get("alibi") is True or (isinstance(attention, dict) and attention.get("alibi") is True):
        return "alibi"
    if model_type in ALIBI_TYPES:
        return "alibi"
    if model_type in LEARNED_TYPES or any(_POSITION_TABLE.search(info.name) for info in tensors):
        return "learned"
    keys = ("rope_theta", "rope_parameters", "rope_scaling", "rotary_dim", "rotary_pct", "rotary_emb_base")
    if model_type in ROPE_TYPES or any(config.get(key) is not None for key in keys):
        return "rope"
    return "unknown"


def _rope(config: Mapping[str, Any]) -> tuple[Rope, int | None]:
    """Rotary settings and the original length, from today's `rope_parameters` or yesterday's two keys."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, dict):
        settings = {}
    # Models with sliding-window layers keep one set per layer type; the full ones carry the context.
    nested = settings.get("full_attention")
    if isinstance(nested, dict):
        settings = nested
    kind = str(settings.get("rope_type") or settings.get("type") or "default")
    theta = _real(
        settings.get("rope_theta"), config.get("rope_theta"), config.get("rotary_emb_base"), default=1e4
    )
    partial = _real(
        settings.get("partial_rotary_factor"), config.get("partial_rotary_factor"), config.get("rotary_pct"),
        default=1.0,
    )  # fmt: skip
    original: int | None = None
    if kind != "default":
        for value in (
            settings.get("original_max_position_embeddings"),
            config.get("original_max_position_embeddings"),
        ):
            if original is None and type(value) is int and 0 < value < 2**31:
                original = value
    return Rope(theta, kind, _real(settings.get("factor"), default=1.0), partial), original


def _real(*values: Any, default: float) -> float:
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e15:
            return float(value)
    return default
