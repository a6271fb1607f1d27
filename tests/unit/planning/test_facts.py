from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler_wizard.errors import (
    IncompatibleModelError,
    ModelError,
    ModelNotFoundError,
    RemoteCodeError,
    UnsafeWeightsError,
)
from scaler_wizard.planning.facts import LinearShape, ModelFacts, facts_digest, read_facts
from scaler_wizard.planning.safetensors_header import read_header

Writer = Callable[..., Path]
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 32,
}  # fmt: skip
SHAPES = {"model.embed_tokens.weight": (16, 8), "model.layers.0.self_attn.q_proj.weight": (8, 8)}


def test_llama_3b_facts(llama_3b: ModelFacts) -> None:
    assert llama_3b.parameters == 3_212_749_824 - 28 * 3072  # the fixture has one norm a layer, not two
    assert (llama_3b.base_context, llama_3b.max_context) == (8192, 131072)
    assert llama_3b.has_rope
    assert llama_3b.rope is not None
    assert (llama_3b.rope.type, llama_3b.rope.factor) == ("llama3", 32.0)
    assert llama_3b.weight_bytes == 2 * llama_3b.parameters
    assert llama_3b.suffixes == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert llama_3b.shapes_of(["v_proj"]) == (LinearShape("v_proj", 3072, 1024, 28),)


def test_a_layer_name_the_model_lacks_lists_those_it_has(tiny: ModelFacts) -> None:
    with pytest.raises(IncompatibleModelError, match=r"wq.*q_proj, k_proj"):
        tiny.shapes_of(["wq"])


def test_fused_projections_of_phi3(write_model: Writer) -> None:
    shapes = {
        "model.embed_tokens.weight": (64, 32),
        "model.layers.0.self_attn.qkv_proj.weight": (96, 32),
        "model.layers.0.self_attn.o_proj.weight": (32, 32),
        "model.layers.0.mlp.gate_up_proj.weight": (128, 32),
        "model.layers.0.mlp.down_proj.weight": (32, 64),
        "lm_head.weight": (64, 32),
    }
    facts = read_facts(
        write_model(CONFIG | {"model_type": "phi3", "hidden_size": 32, "vocab_size": 64}, shapes)
    )
    assert facts.suffixes == ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert LinearShape("gate_up_proj", 32, 128, 1) in facts.linear_shapes
    assert not facts.tie_word_embeddings


def test_nested_text_config_and_vision_tower_left_out(write_model: Writer) -> None:
    text = {key: value for key, value in CONFIG.items() if key != "architectures"}
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {},
    }
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": text | {"model_type": "gemma3_text", "rope_parameters": rope},
    }  # fmt: skip
    shapes = SHAPES | {"vision_tower.encoder.layers.0.self_attn.q_proj.weight": (99, 99)}
    facts = read_facts(write_model(config, shapes))
    assert facts.linear_shapes == (LinearShape("q_proj", 8, 8, 1),)
    assert facts.parameters == 16 * 8 + 64
    assert facts.rope is not None
    assert (facts.rope.theta, facts.rope.type, facts.rope.factor) == (1e6, "linear", 8.0)


def test_gpt2_stores_linears_transposed_and_has_learned_positions(write_model: Writer) -> None:
    config = {
        "model_type": "gpt2",
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": 16,
        "n_positions": 32,
    }
    shapes = {"wte.weight": (16, 8), "wpe.weight": (32, 8), "h.0.attn.c_attn.weight": (8, 24)}
    facts = read_facts(write_model(config, shapes))
    assert facts.linear_shapes == (LinearShape("c_attn", 8, 24, 1),)
    assert facts.positions == "learned"
    assert not facts.has_rope


def test_tied_head_that_is_stored_anyway_counts_once(write_model: Writer) -> None:
    folder = write_model(CONFIG | {"tie_word_embeddings": True}, SHAPES | {"lm_head.weight": (16, 8)})
    assert read_facts(folder).parameters == 16 * 8 + 64


def test_shards_are_read_through_their_index(write_model: Writer, write_file: Callable[..., None]) -> None:
    folder = write_model(CONFIG, None)
    names = list(SHAPES)
    for number, name in enumerate(names):
        write_file(folder / f"model-{number}.safetensors", {name: SHAPES[name]})
    index = {"weight_map": {name: f"model-{number}.safetensors" for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_facts(folder).parameters == 16 * 8 + 64
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="model-1"):
        read_facts(folder)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin"])
def test_an_index_cannot_point_outside(write_model: Writer, shard: str) -> None:
    folder = write_model(CONFIG, None)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelError, match="shard"):
        read_facts(folder)


def test_pickles_are_refused(write_model: Writer) -> None:
    folder = write_model(CONFIG, None)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(UnsafeWeightsError, match=r"pytorch_model\.bin"):
        read_facts(folder)


def test_remote_code_only_when_allowed(write_model: Writer) -> None:
    folder = write_model(CONFIG | {"auto_map": {"AutoModel": "evil.Model"}}, SHAPES)
    with pytest.raises(RemoteCodeError, match="auto_map"):
        read_facts(folder)
    assert read_facts(folder, allow_remote_code=True).layers == 1


def test_missing_pieces(write_model: Writer, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        read_facts(tmp_path / "nowhere")
    with pytest.raises(ModelNotFoundError, match="no weights"):
        read_facts(write_model(CONFIG, None))


def test_quantised_weights_are_refused(write_model: Writer) -> None:
    with pytest.raises(IncompatibleModelError, match="quantised"):
        read_facts(write_model(CONFIG | {"quantization_config": {"quant_method": "gptq"}}, SHAPES))


@pytest.mark.parametrize("value", [-1, 0, 2**40, "8", 8.5, True])
def test_nonsense_sizes_are_refused(write_model: Writer, value: object) -> None:
    with pytest.raises(ModelError, match="hidden_size"):
        read_facts(write_model(CONFIG | {"hidden_size": value}, SHAPES))


def _entry(**changes: Any) -> bytes:
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}
    return json.dumps(header).encode()


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"\xff\xff",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {}}',
        b"[" * 5000,
        b'{"a": 1}',
        _entry(dtype="F33"),
        _entry(shape=[-2]),
        _entry(shape=[2.0]),
        _entry(shape=[3]),
        _entry(data_offsets=[8, 16]),
        _entry(data_offsets=[0]),
        _entry(shape=[2**47, 2**47]),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ModelError, match="not a usable"):
        read_header(path)


@pytest.mark.parametrize("length", [0, 1, 101, 2**33, 2**63])
def test_header_length_is_checked_before_it_is_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(20))
    with pytest.raises(ModelError, match="header claims"):
        read_header(path)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_random_bytes_never_escape_the_error_tree(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError):
        read_header(path)


def test_digest_follows_content_not_place(tiny: ModelFacts) -> None:
    assert facts_digest(dataclasses.replace(tiny, path="/elsewhere", name="copy")) == facts_digest(tiny)
    assert facts_digest(dataclasses.replace(tiny, layers=3)) != facts_digest(tiny)
