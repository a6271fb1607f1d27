"""Model directories with real headers and no weights: sparse files of the right size."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.planning.facts import ModelFacts, read_facts

Shapes = Mapping[str, tuple[int, ...]]


def write_safetensors(path: Path, shapes: Shapes, dtype: str = "BF16", item: int = 2) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        size = item
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)


def llama_shapes(hidden: int, layers: int, mlp: int, kv: int, vocab: int, *, head: bool = False) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(layers):
        base = f"model.layers.{index}."
        shapes |= {
            base + "input_layernorm.weight": (hidden,),
            base + "mlp.down_proj.weight": (hidden, mlp),
            base + "mlp.gate_proj.weight": (mlp, hidden),
            base + "mlp.up_proj.weight": (mlp, hidden),
            base + "self_attn.k_proj.weight": (kv, hidden),
            base + "self_attn.o_proj.weight": (hidden, hidden),
            base + "self_attn.q_proj.weight": (hidden, hidden),
            base + "self_attn.v_proj.weight": (kv, hidden),
        }
    shapes["model.norm.weight"] = (hidden,)
    if head:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def llama_config(
    hidden: int, layers: int, mlp: int, heads: int, kv_heads: int, vocab: int, context: int
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": mlp, "vocab_size": vocab, "max_position_embeddings": context,
        "rope_theta": 10000.0, "tie_word_embeddings": True,
    }  # fmt: skip


Writer = Callable[..., Path]


@pytest.fixture
def write_model(tmp_path: Path) -> Writer:
    """write_model(config, shapes, name) -> directory."""

    def write(config: Mapping[str, Any], shapes: Shapes | None, name: str = "model") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        if shapes is not None:
            write_safetensors(folder / "model.safetensors", shapes)
        return folder

    return write


def _facts(folder: Path, config: Mapping[str, Any], shapes: Shapes) -> ModelFacts:
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", shapes)
    return read_facts(folder)


@pytest.fixture(scope="session")
def llama_3b(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    """The shapes of Llama-3.2-3B."""
    config = llama_config(3072, 28, 8192, 24, 8, 128256, 131072) | {
        "head_dim": 128,
        "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192},
    }
    return _facts(tmp_path_factory.mktemp("llama_3b"), config, llama_shapes(3072, 28, 8192, 1024, 128256))


@pytest.fixture(scope="session")
def llama_1b(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    """The shapes of TinyLlama-1.1B: base context 2,048."""
    config = llama_config(2048, 22, 5632, 32, 4, 32000, 2048) | {"tie_word_embeddings": False}
    return _facts(
        tmp_path_factory.mktemp("llama_1b"), config, llama_shapes(2048, 22, 5632, 256, 32000, head=True)
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    """Two layers of width 64, base context 128."""
    config = llama_config(64, 2, 256, 4, 2, 512, 128)
    return _facts(tmp_path_factory.mktemp("tiny"), config, llama_shapes(64, 2, 256, 32, 512))


@pytest.fixture(scope="session")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    """An ALiBi model with a fused query_key_value."""
    config = {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "hidden_size": 64, "n_layer": 2,
              "n_head": 4, "vocab_size": 512, "seq_length": 256}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"word_embeddings.weight": (512, 64)}
    for index in range(2):
        shapes |= {
            f"h.{index}.self_attention.query_key_value.weight": (192, 64),
            f"h.{index}.self_attention.dense.weight": (64, 64),
            f"h.{index}.mlp.dense_h_to_4h.weight": (256, 64),
            f"h.{index}.mlp.dense_4h_to_h.weight": (64, 256),
        }
    return _facts(tmp_path_factory.mktemp("bloom"), config, shapes)


@pytest.fixture
def write_file() -> Callable[..., None]:
    """write_file(path, shapes): one sparse safetensors file."""
    return write_safetensors
