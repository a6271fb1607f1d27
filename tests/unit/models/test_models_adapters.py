"""Adapters: what is trained, what the files hold, and that looking at a model folded leaves no trace."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaler_wizard.errors import IncompatibleModelError, ModelError, ModelNotFoundError, UnsafeWeightsError
from scaler_wizard.models.adapters import (
    adapter_state,
    adapters_off,
    attach,
    attach_lora,
    attach_prefix,
    folded,
    load_adapter,
    load_adapter_state,
    lora_layers,
    prepare_full,
    prepare_qlora,
    save_adapter,
    trainable_parameters,
)
from scaler_wizard.models.hashing import state_hash
from scaler_wizard.models.tiny import tiny_model

KINDS = ("llama", "qwen3", "phi3", "gemma", "mistral")
IDS = torch.arange(6, 30).reshape(1, 24)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def trained(kind="llama", *, dtype=torch.float32, seed=0, **settings):
    """A model with an adapter whose B matrices are not zero, as after training."""
    model = attach_lora(tiny_model(kind, dtype=dtype), **{"rank": 4, "alpha": 8, "seed": seed, **settings})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in trainable_parameters(model).items():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_covers_every_linear_layer_but_the_head(kind):
    model = attach_lora(tiny_model(kind), rank=2, alpha=4)
    adapted = {name.rpartition(".")[2] for name in lora_layers(model)}
    fused = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    separate = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted == (fused if kind == "phi3" else separate)
    assert all(".lora_" in name for name in trainable_parameters(model))
    assert torch.equal(logits(model.eval()), logits(tiny_model(kind)))  # B is zero


def test_attention_and_named_targets():
    attention = attach_lora(tiny_model("phi3"), rank=2, alpha=4, target_modules="attention")
    assert {name.rpartition(".")[2] for name in lora_layers(attention)} == {"qkv_proj", "o_proj"}
    assert len(lora_layers(attach_lora(tiny_model(), rank=2, alpha=4, target_modules=["v_proj"]))) == 2
    with pytest.raises(IncompatibleModelError, match=r"no_proj.*linear layers of this model: down_proj"):
        attach_lora(tiny_model(), rank=2, alpha=4, target_modules=["no_proj"])
    with pytest.raises(IncompatibleModelError, match="lm_head"):
        attach_lora(tiny_model(), rank=2, alpha=4, target_modules=["lm_head"])


def test_initial_values_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = adapter_state(attach_lora(tiny_model(), rank=4, alpha=8, seed=7))
    position = torch.get_rng_state()
    torch.manual_seed(2)
    second = adapter_state(attach_lora(tiny_model(), rank=4, alpha=8, seed=7))
    third = adapter_state(attach_lora(tiny_model(), rank=4, alpha=8, seed=8))
    assert state_hash(first) == state_hash(second) != state_hash(third)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), position)


def test_adapters_are_float32_on_a_bfloat16_base():
    model = attach_lora(tiny_model(dtype=torch.bfloat16), rank=4, alpha=8)
    assert {value.dtype for value in adapter_state(model).values()} == {torch.float32}
    assert {value.dtype for value in model.parameters() if not value.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 8 / 4), (True, 8 / 2)])
def test_scaling_is_alpha_over_rank_or_over_its_root(rslora, scaling):
    layer = next(iter(lora_layers(attach_lora(tiny_model(), rank=4, alpha=8, use_rslora=rslora)).values()))
    assert layer.scaling["default"] == scaling


@pytest.mark.parametrize("strategy", ["lora", "full", "prefix_tuning"])
def test_one_step_changes_what_each_strategy_trains_and_nothing_else(strategy):
    model = attach(tiny_model(), strategy, rank=2, alpha=4, virtual_tokens=3, seed=0)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    parameters = trainable_parameters(model)
    optimizer = torch.optim.SGD(parameters.values(), lr=1.0)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    # LoRA's A has no gradient while B is zero.
    assert changed == {name for name in parameters if "lora_A" not in name}
    assert len(parameters) == {"lora": 28, "full": len(before), "prefix_tuning": 1}[strategy]


def test_prefix_is_seeded_and_shapes_follow_grouped_attention():
    model = attach_prefix(tiny_model("qwen3"), 3, seed=5)
    state = adapter_state(model)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "prompt_embeddings": (3, 2 * 2 * 2 * 16)
    }
    assert state_hash(state) == state_hash(adapter_state(attach_prefix(tiny_model("qwen3"), 3, seed=5)))
    assert not torch.equal(logits(model.eval()), logits(tiny_model("qwen3")))


def test_what_cannot_be_prepared_is_refused():
    with pytest.raises(IncompatibleModelError, match="not loaded in 4 bit"):
        prepare_qlora(tiny_model())
    model = attach_lora(tiny_model(), rank=2, alpha=4)
    for again in (prepare_full, lambda m: attach_prefix(m, 2), lambda m: attach_lora(m, rank=2, alpha=4)):
        with pytest.raises(IncompatibleModelError, match="has one already"):
            again(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen3", "phi3"])
def test_folding_computes_the_same_and_leaves_no_trace(kind, dtype):
    model = trained(kind, dtype=dtype)
    before, hashed = logits(model), state_hash(model.state_dict())
    base = logits(tiny_model(kind, dtype=dtype))
    with folded(model):
        inside = logits(model)
        assert not any("lora" in node for node in _called(model))
    assert torch.equal(logits(model), before)
    assert state_hash(model.state_dict()) == hashed
    difference = (inside - before).float().abs().mean() / before.float().std()
    assert difference < (1e-5 if dtype is torch.float32 else 0.05)
    assert (before - base).float().abs().mean() / before.float().std() > 0.1


def _called(model):
    """Names of the modules that a forward pass runs through."""
    names = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: names.append(name))
        for name, module in model.named_modules()
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    return names


def test_folding_restores_after_an_error_and_passes_plain_models_through():
    model = trained()
    hashed = state_hash(model.state_dict())
    with pytest.raises(ZeroDivisionError), folded(model):
        1 / 0  # noqa: B018
    assert state_hash(model.state_dict()) == hashed
    plain = tiny_model()
    with folded(plain) as same, adapters_off(same) as again:
        assert again is plain


def test_adapters_off_is_the_base_model():
    model = trained("gemma")
    with_adapter = logits(model)
    with adapters_off(model):
        assert torch.equal(logits(model), logits(tiny_model("gemma")))
    assert torch.equal(logits(model), with_adapter)
    prefix = attach_prefix(tiny_model(), 3).eval()
    with adapters_off(prefix):
        assert torch.equal(logits(prefix), logits(tiny_model()))


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_files_round_trip_to_equal_logits_and_equal_bytes(kind, tmp_path):
    model = trained(kind)
    save_adapter(model, tmp_path / "a")
    # PEFT keeps names in a set, whose order differs between processes.
    names = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names)
    again = load_adapter(tiny_model(kind), tmp_path / "a")
    assert torch.equal(logits(again), logits(model))
    assert set(trainable_parameters(again)) == set(trainable_parameters(model))
    save_adapter(again, tmp_path / "b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_prefix_round_trips(tmp_path):
    model = attach_prefix(tiny_model(), 4, seed=1).eval()
    save_adapter(model, tmp_path)
    frozen = load_adapter(tiny_model(), tmp_path, trainable=False)
    assert torch.equal(logits(frozen), logits(model))
    assert trainable_parameters(frozen) == {}


def test_state_is_loaded_strictly_or_not_at_all():
    model, other = trained(seed=0), trained(seed=1)
    state = adapter_state(other)
    names = sorted(state)
    hashed = state_hash(adapter_state(model))
    bad = [
        ({name: state[name] for name in names[1:]}, "1 missing"),
        ({**state, "extra": torch.zeros(1)}, "1 unexpected"),
        ({**state, names[0]: torch.zeros(3, 3)}, "1 of another shape"),
    ]
    for tensors, message in bad:
        with pytest.raises(ModelError, match=message):
            load_adapter_state(model, tensors)
        assert state_hash(adapter_state(model)) == hashed
    load_adapter_state(model, state)
    assert torch.equal(logits(model), logits(other))


@pytest.fixture(scope="module")
def adapter_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(trained(), folder)
    return folder


HOSTILE = [
    ({"peft_type": "ADALORA"}, "ADALORA"),
    ({"peft_type": ["LORA"]}, "of type"),
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"rank_pattern": {"q_proj": 64}}, "rank_pattern"),
    ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
    ({"target_modules": "(a+)+$"}, "target_modules"),
    ({"target_modules": []}, "target_modules"),
    ({"target_modules": ["lost_proj"]}, "does not fit this model"),
    ({"r": 10**9}, "sets r to"),
    ({"r": True}, "sets r to"),
    ({"lora_alpha": float("inf")}, "lora_alpha"),
    ({"r": 8}, "28 of another shape"),
    ({"field_of_a_later_version": 1}, "field_of_a_later_version"),
]


@pytest.mark.parametrize(("changes", "message"), HOSTILE)
def test_hostile_or_unsupported_configurations_are_refused(adapter_dir, tmp_path, changes, message):
    config = json.loads((adapter_dir / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    (tmp_path / "adapter_model.safetensors").write_bytes(
        (adapter_dir / "adapter_model.safetensors").read_bytes()
    )
    model = tiny_model()
    with pytest.raises(ModelError, match=message):
        load_adapter(model, tmp_path)
    assert lora_layers(model) == {}


def test_damaged_or_missing_files_are_refused(adapter_dir, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no adapter"):
        load_adapter(tiny_model(), tmp_path)
    (tmp_path / "adapter_config.json").write_bytes((adapter_dir / "adapter_config.json").read_bytes())
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(UnsafeWeightsError):
        load_adapter(tiny_model(), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes((adapter_dir / "adapter_model.safetensors").read_bytes()[:-10])
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapter(tiny_model(), tmp_path)
    tensors = load_file(adapter_dir / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="not finite"):
        load_adapter(tiny_model(), tmp_path)
