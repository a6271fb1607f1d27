"""Loading: what comes back, and what is refused before or right after transformers reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from jinja2.exceptions import SecurityError
from safetensors.torch import load_file, save_file

from scaler_wizard.errors import (
    IncompatibleModelError,
    ModelError,
    ModelNotFoundError,
    NotExtendableError,
    RemoteCodeError,
    UnsafeWeightsError,
)
from scaler_wizard.models.load import load_model
from scaler_wizard.models.rope import RopeSetting, apply_rope
from scaler_wizard.models.tiny import TINY_CONTEXT, tiny_model, tiny_tokenizer

KINDS = ("llama", "qwen3", "phi3", "gemma", "mistral")
IDS = torch.arange(6, 70).reshape(1, 64)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind in (*KINDS, "gpt2"):
        tiny_model(kind).save_pretrained(root / kind)
        tiny_tokenizer().save_pretrained(root / kind)
    return root


@pytest.fixture
def copied(saved, tmp_path):
    return Path(shutil.copytree(saved / "llama", tmp_path / "llama"))


def load(path, **changes):
    return load_model(path, **{"dtype": torch.float32, "device": "cpu", **changes})


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", KINDS)
def test_loads_the_weights_that_were_saved(saved, kind):
    loaded = load(saved / kind)
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS[:, :32]).logits, tiny_model(kind)(IDS[:, :32]).logits)
    assert (loaded.base_context, loaded.path, loaded.dtype) == (TINY_CONTEXT, saved / kind, torch.float32)
    assert loaded.device.type == "cpu"
    assert not loaded.model.training
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.tokenizer("hi").input_ids == tiny_tokenizer()("hi").input_ids


def test_bfloat16_weights_keep_float32_frequencies(saved):
    loaded = load(saved / "llama", dtype=torch.bfloat16)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_rope_is_applied_while_loading(saved):
    setting = RopeSetting("yarn", TINY_CONTEXT, 64)
    loaded = load(saved / "llama", rope=setting)
    by_hand = tiny_model("llama")
    apply_rope(by_hand, setting)
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, by_hand(IDS).logits)
    assert loaded.base_context == TINY_CONTEXT
    with pytest.raises(NotExtendableError):
        load(saved / "gpt2", rope=setting)


def test_only_pickle_weights_are_refused(copied):
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    with pytest.raises(UnsafeWeightsError, match=r"pytorch_model\.bin"):
        load(copied)


def test_code_in_model_or_tokenizer_is_refused(copied):
    marker = copied / "ran"
    (copied / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    tokenizer_config = (copied / "tokenizer_config.json").read_text()
    edit(copied / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    with pytest.raises(RemoteCodeError, match="tokenizer"):
        load(copied)
    (copied / "tokenizer_config.json").write_text(tokenizer_config)
    edit(copied / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(RemoteCodeError, match="configuration"):
        load(copied)
    assert not marker.exists()


def test_an_adapter_posing_as_a_model_is_refused(copied):
    # transformers would load the base model that this file names instead.
    (copied / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    with pytest.raises(ModelError, match="holds an adapter"):
        load(copied)


def test_a_missing_weight_is_not_silently_random(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights.*up_proj"):
        load(copied)


def test_a_weight_of_another_shape_is_refused(copied):
    edit(copied / "config.json", intermediate_size=64)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(copied)


def test_nonsense_configurations_are_refused(copied):
    edit(copied / "config.json", num_hidden_layers=1_000_000)
    with pytest.raises(ModelError, match="1,000,000 layers"):
        load(copied)
    edit(copied / "config.json", num_hidden_layers=2, model_type="no-such-model")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(copied)


def test_missing_things_are_named(copied, tmp_path):
    with pytest.raises(ModelNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(ModelError, match="no device"):
        load(copied, device="abacus")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        load(copied)


def test_another_tokenizer_must_fit_the_embeddings(saved, tmp_path):
    larger = tiny_tokenizer()
    larger.add_tokens([f"word{index}" for index in range(10)])
    larger.save_pretrained(tmp_path)
    with pytest.raises(IncompatibleModelError, match="272 tokens for a model with 262"):
        load(saved / "llama", tokenizer=tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_four_bit_and_cuda_are_refused_without_a_gpu(saved):
    with pytest.raises(IncompatibleModelError, match="CUDA") as found:
        load(saved / "llama", quantize_4bit=True)
    assert "unpacks each one" in found.value.expected
    assert "strategy to lora" in found.value.todo
    with pytest.raises(ModelError, match="there is none"):
        load(saved / "llama", device="cuda")


def test_chat_templates_render_in_a_sandbox(saved):
    tokenizer = load(saved / "llama").tokenizer
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|user|>hi<|end|>"
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template(chat, tokenize=False)
