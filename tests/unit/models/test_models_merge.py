"""Merging adapters for good, and the measure of how far two models are apart."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from scaler_wizard.errors import IncompatibleModelError, ModelError
from scaler_wizard.models.adapters import attach_lora, attach_prefix, lora_layers, trainable_parameters
from scaler_wizard.models.hashing import state_hash, weights_sha256
from scaler_wizard.models.merge import compare_logits, logit_comparison, merge_adapter, sampled_logits
from scaler_wizard.models.tiny import tiny_model

SEQUENCES = [torch.arange(6, 26), torch.arange(100, 132)]


def trained(kind="llama", dtype=torch.float32, **settings):
    model = attach_lora(tiny_model(kind, dtype=dtype), **{"rank": 4, "alpha": 8, **settings})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in trainable_parameters(model).items():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "gemma", "mistral"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_merged_model_computes_what_the_adapter_did(kind, rslora):
    merged = merge_adapter(trained(kind, use_rslora=rslora))
    assert not isinstance(merged, PeftModel)
    assert lora_layers(merged) == {}
    assert set(merged.state_dict()) == set(tiny_model(kind).state_dict())
    found = logit_comparison(trained(kind, use_rslora=rslora), merged, SEQUENCES)
    assert found.ok
    assert found.max_abs < 1e-4
    assert found.n_positions == 52
    assert not logit_comparison(tiny_model(kind), merged, SEQUENCES).ok


def test_the_sum_is_rounded_once():
    model = trained(dtype=torch.bfloat16)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2.0
    expected = (layer.base_layer.weight.float() + delta).to(torch.bfloat16)
    merged = merge_adapter(model)
    assert torch.equal(merged.model.layers[0].self_attn.q_proj.weight, expected)


def test_a_prefix_cannot_be_merged():
    with pytest.raises(IncompatibleModelError, match="export the adapter"):
        merge_adapter(attach_prefix(tiny_model(), 2))


def test_sampled_logits_are_those_of_the_full_pass_and_restore_the_mode():
    model = tiny_model()
    ids = torch.arange(6, 36)
    model.train()
    sampled = sampled_logits(model, ids, positions=4)
    assert model.training
    with torch.no_grad():
        full = model.eval()(ids[None]).logits[0]
    torch.testing.assert_close(sampled, full[[0, 10, 19, 29]])


def test_comparison_by_hand():
    first = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    second = torch.tensor([[1.0, 3.5], [2.0, 4.0]])
    found = compare_logits([(first, second)], tolerance=0.5)
    assert (found.max_abs, found.mean_abs, found.top1_agreement) == (4.0, 4.5 / 4, 0.5)
    assert found.scale == pytest.approx(float(torch.tensor([1.0, 3.0, 2.0, 0.0]).std()))
    assert not found.ok
    assert compare_logits([(first, first)], tolerance=0.0).ok
    assert not compare_logits([(first, first * float("nan"))], tolerance=1e9).ok
    assert "n = 2 positions" in str(found)
    with pytest.raises(ModelError):
        compare_logits([(first, second[:, :1])], tolerance=1.0)


def test_hashes_follow_content_only(tmp_path):
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    hashed = state_hash(tensors)
    assert hashed == state_hash(dict(reversed(tensors.items())))
    changed = [
        {**tensors, "a": torch.tensor([0.0, 1.0, 2.0, 3.0000002])},
        {**tensors, "a": torch.arange(4.0).reshape(2, 2)},
        {**tensors, "b": torch.ones(2, 2, dtype=torch.float16)},
        {"a": tensors["a"], "c": tensors["b"]},
    ]
    assert len({hashed, *map(state_hash, changed)}) == 5
    tiny_model().save_pretrained(tmp_path / "one")
    tiny_model().save_pretrained(tmp_path / "two")
    tiny_model().save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    one, two, parts = (weights_sha256(tmp_path / name) for name in ("one", "two", "parts"))
    assert one == two == weights_sha256(tmp_path / "one" / "model.safetensors") != parts
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no safetensors"):
        weights_sha256(tmp_path / "empty")
