"""RoPE settings, their parameters, and applying them: against hand formulas and against reloading."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from scaler_wizard.errors import ModelError, NotExtendableError
from scaler_wizard.models.adapters import attach_lora
from scaler_wizard.models.context import extension_for
from scaler_wizard.models.rope import (
    RopeSetting,
    applied_rope,
    apply_rope,
    base_context,
    inv_freq_by_hand,
    is_supported,
    remove_rope,
    rope_parameters,
    rotary_dim,
    rotary_modules,
)
from scaler_wizard.models.rope_formulas import ntk_base
from scaler_wizard.models.tiny import TINY_CONTEXT, tiny_model

STATIC = ("none", "linear", "ntk", "yarn", "llama3")
TARGET = 4 * TINY_CONTEXT
ROPE_KINDS = ("llama", "qwen3", "phi3", "gemma", "mistral", "gpt_neox", "gemma3")
IDS = torch.randint(6, 262, (1, TARGET), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models():
    return {kind: tiny_model(kind) for kind in (*ROPE_KINDS, "gpt2", "bloom")}


@pytest.fixture
def llama(models):
    yield models["llama"]
    remove_rope(models["llama"])


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def setting_for(model, method, target=TARGET):
    half = rotary_dim(model.config, flat(model.config.rope_parameters)) // 2
    factors = {"short_factor": tuple([1.0] * half), "long_factor": tuple(1.0 + i for i in range(half))}
    return RopeSetting(method, TINY_CONTEXT, target, **(factors if method == "longrope" else {}))


def flat(parameters):
    return parameters.get("full_attention", parameters)


def frequencies(model, kind=""):
    module = next(iter(rotary_modules(model).values()))
    return getattr(module, f"{kind}inv_freq"), getattr(module, f"{kind}attention_scaling")


def by_hand(model, setting, length=0):
    own = flat(model.config.rope_parameters)
    return inv_freq_by_hand(
        setting.method,
        base=tiny_theta(model),
        rotary_dim=rotary_dim(model.config, own),
        original_context=setting.original_context,
        factor=setting.factor,
        short_factor=setting.short_factor,
        long_factor=setting.long_factor,
        sequence_length=length,
    )


def tiny_theta(model):
    return 1_000_000.0 if model.config.model_type == "gemma3_text" else 10_000.0


def reloaded(model, folder):
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa")


@pytest.mark.parametrize("kind", ROPE_KINDS)
@pytest.mark.parametrize("method", [*STATIC, "longrope"])
def test_frequencies_equal_the_formula_written_by_hand(models, kind, method):
    model = models[kind]
    setting = setting_for(model, method)
    apply_rope(model, setting)
    logits(model)  # longrope switches to its long factors on the way
    found, attention = frequencies(model, "full_attention_" if kind == "gemma3" else "")
    expected, expected_attention = by_hand(model, setting, length=TARGET)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)
    assert attention == pytest.approx(expected_attention, rel=1e-6)
    remove_rope(model)


@pytest.mark.parametrize("kind", ROPE_KINDS)
@pytest.mark.parametrize("method", ["linear", "ntk", "dynamic", "yarn", "llama3", "longrope"])
def test_applying_equals_saving_and_reloading_and_comes_back(models, kind, method, tmp_path):
    model = models[kind]
    before = logits(model)
    setting = setting_for(model, method)
    if kind == "phi3" and method == "dynamic":
        with pytest.raises(NotExtendableError, match="dynamic on a phi3 model"):
            apply_rope(model, setting)
        assert torch.equal(logits(model), before)
        return
    apply_rope(model, setting)
    applied = logits(model)
    assert not torch.equal(applied, before)
    assert torch.equal(logits(reloaded(model, tmp_path)), applied)
    remove_rope(model)
    assert torch.equal(logits(model), before)
    assert model.config.max_position_embeddings == TINY_CONTEXT


def test_settings_do_not_compound(llama):
    once = RopeSetting("linear", TINY_CONTEXT, TARGET)
    apply_rope(llama, once)
    direct = logits(llama)
    remove_rope(llama)
    for target in (2 * TINY_CONTEXT, TARGET):
        apply_rope(llama, RopeSetting("linear", TINY_CONTEXT, target))
    assert llama.config.rope_parameters["factor"] == TARGET / TINY_CONTEXT
    assert torch.equal(logits(llama), direct)
    with pytest.raises(NotExtendableError, match="never compounded"):
        apply_rope(llama, RopeSetting("linear", 2 * TINY_CONTEXT, TARGET))
    assert applied_rope(llama) == once


def test_a_copy_of_an_extended_model_still_knows_its_base(llama):
    before = logits(llama)
    apply_rope(llama, RopeSetting("yarn", TINY_CONTEXT, TARGET))
    twin = copy.deepcopy(llama)
    assert base_context(twin) == TINY_CONTEXT
    remove_rope(twin)
    assert torch.equal(logits(twin), before)


def test_works_through_a_peft_wrapper():
    wrapped = attach_lora(tiny_model("llama"), rank=2, alpha=4).eval()
    plain = tiny_model("llama")
    setting = RopeSetting("yarn", TINY_CONTEXT, TARGET)
    apply_rope(wrapped, setting)
    apply_rope(plain, setting)
    assert torch.equal(logits(wrapped), logits(plain))  # B is zero: only the positions differ from the base
    assert wrapped.config.max_position_embeddings == TARGET


def test_sliding_layers_of_gemma3_stay_as_they_are(models):
    model = models["gemma3"]
    before = frequencies(model, "sliding_attention_")[0].clone()
    apply_rope(model, RopeSetting("linear", TINY_CONTEXT, TARGET))
    assert torch.equal(frequencies(model, "sliding_attention_")[0], before)
    assert model.config.rope_parameters["sliding_attention"]["rope_type"] == "default"
    remove_rope(model)


# The traps of transformers 5.


def test_trap_editing_the_config_after_loading_changes_nothing():
    model = tiny_model("llama")
    before = logits(model)
    model.config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    assert torch.equal(logits(model), before)


def test_trap_yarn_without_the_original_length_reads_the_raised_maximum(llama, tmp_path):
    naive = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0}
    wrong = tiny_model("llama", max_position_embeddings=TARGET, rope_parameters=dict(naive))
    assert wrong.config.rope_parameters["original_max_position_embeddings"] == TARGET
    setting = RopeSetting("yarn", TINY_CONTEXT, TARGET)
    apply_rope(llama, setting)
    assert llama.config.rope_parameters["original_max_position_embeddings"] == TINY_CONTEXT
    assert not torch.allclose(frequencies(wrong)[0], frequencies(llama)[0])


def test_trap_dynamic_scales_nothing_when_the_maximum_was_raised(llama):
    plain = logits(llama)
    parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    raised = tiny_model("llama", max_position_embeddings=TARGET, rope_parameters=parameters)
    assert torch.equal(logits(raised), plain)
    apply_rope(llama, RopeSetting("dynamic", TINY_CONTEXT, TARGET))
    assert llama.config.max_position_embeddings == TINY_CONTEXT
    assert not torch.equal(logits(llama), plain)
    expected, _ = by_hand(llama, RopeSetting("dynamic", TINY_CONTEXT, TARGET), length=TARGET)
    torch.testing.assert_close(frequencies(llama)[0].double(), expected, rtol=2e-6, atol=0)


def test_trap_a_replaced_dict_without_theta_loses_the_base():
    model = tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})
    replaced = tiny_model("llama", rope_parameters={"rope_type": "linear", "factor": 2.0})
    assert replaced.config.rope_parameters["rope_theta"] != 500_000.0
    for method in ("linear", "dynamic", "yarn", "llama3"):
        setting = RopeSetting(method, TINY_CONTEXT, TARGET)
        assert rope_parameters(model.config, setting)["rope_theta"] == 500_000.0


def test_trap_static_ntk_is_a_changed_base(llama):
    setting = RopeSetting("ntk", TINY_CONTEXT, TARGET)
    parameters = rope_parameters(llama.config, setting)
    assert parameters == {"rope_type": "default", "rope_theta": ntk_base(10_000.0, 4.0, 8)}
    assert parameters["rope_theta"] == pytest.approx(10_000.0 * 4.0 ** (8 / 6))


def test_trap_phi3_turns_yarn_into_longrope_so_it_is_written_as_longrope(models):
    model = models["phi3"]
    parameters = rope_parameters(model.config, RopeSetting("yarn", TINY_CONTEXT, TARGET))
    assert parameters["rope_type"] == "longrope"
    assert parameters["attention_factor"] == pytest.approx(0.1 * math.log(4.0) + 1.0)
    assert parameters["short_factor"] == parameters["long_factor"]


# Dynamic: its frequencies belong to one forward pass.


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_dynamic_leaves_short_inputs_unchanged_and_forgets_long_ones(models, kind):
    model = models[kind]
    short, exact = IDS[:, : TINY_CONTEXT - 5], IDS[:, :TINY_CONTEXT]
    middle = IDS[:, : 2 * TINY_CONTEXT]
    plain_short, plain_exact = logits(model, short), logits(model, exact)
    apply_rope(model, RopeSetting("dynamic", TINY_CONTEXT, TARGET))
    fresh_middle = logits(model, middle)
    long = logits(model)
    for ids, expected in ((short, plain_short), (exact, plain_exact), (middle, fresh_middle)):
        assert torch.equal(logits(model), long)
        assert torch.equal(logits(model, ids), expected)
    remove_rope(model)


# Models that bring their own scaling, and models without RoPE.


def llama_with_llama3_scaling():
    parameters = {
        "rope_type": "llama3", "factor": 8.0, "rope_theta": 10_000.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    return tiny_model("llama", max_position_embeddings=64, rope_parameters=parameters)


def test_a_trained_scaling_is_kept_and_only_grows_beyond_its_maximum():
    model = llama_with_llama3_scaling()
    own = dict(model.config.rope_parameters)
    before = logits(model)
    assert base_context(model) == 16
    for target in (32, 64):
        apply_rope(model, RopeSetting("llama3", 16, target))
        assert model.config.rope_parameters == own
        assert model.config.max_position_embeddings == 64
        assert torch.equal(logits(model), before)
    apply_rope(model, RopeSetting("llama3", 16, 128))
    assert model.config.rope_parameters == {**own, "factor": 16.0}
    assert model.config.max_position_embeddings == 128
    with pytest.raises(NotExtendableError, match="would undo it"):
        apply_rope(model, RopeSetting("yarn", 16, 128))
    methods = [setting.method for setting in extension_for(model).candidates(model, 128)]
    assert methods == ["none", "llama3"]


@pytest.mark.parametrize(("kind", "reason"), [("gpt2", "learned absolute"), ("bloom", "ALiBi")])
def test_models_without_rope_are_refused_with_the_reason(models, kind, reason):
    with pytest.raises(NotExtendableError, match=reason):
        extension_for(models[kind])
    with pytest.raises(NotExtendableError, match="without rotary"):
        apply_rope(models[kind], RopeSetting("linear", TINY_CONTEXT, TARGET))


def test_candidates_are_what_the_architecture_can_state(models):
    names = {
        kind: [setting.method for setting in extension_for(models[kind]).candidates(models[kind], TARGET)]
        for kind in ("llama", "phi3")
    }
    assert names["llama"] == ["none", "linear", "ntk", "dynamic", "yarn", "llama3"]
    assert names["phi3"] == ["none", "linear", "ntk", "yarn", "llama3"]
    assert not is_supported(models["phi3"], RopeSetting("dynamic", TINY_CONTEXT, TARGET))


def test_longrope_factors_must_fit_the_head(llama):
    with pytest.raises(NotExtendableError, match="4 values each"):
        apply_rope(llama, RopeSetting("longrope", 32, 64, short_factor=(1.0,), long_factor=(1.0,)))
    with pytest.raises(ModelError, match="without its factors"):
        RopeSetting("longrope", 32, 64)


# Settings as data, and properties of the formulas.


def test_setting_round_trips_through_plain_data():
    setting = RopeSetting("longrope", 32, 128, short_factor=(1.0, 2.0), long_factor=(1.5, 3.0))
    assert RopeSetting.from_dict(setting.as_dict()) == setting
    assert setting.as_dict()["factor"] == 4.0
    with pytest.raises(ModelError, match="RoPE factor of 2"):
        RopeSetting.from_dict({**setting.as_dict(), "factor": 2.0})
    with pytest.raises(ModelError, match="keys"):
        RopeSetting.from_dict({**setting.as_dict(), "theta": 1.0})
    with pytest.raises(ModelError, match="at least as long"):
        RopeSetting("linear", 64, 32)
    with pytest.raises(ModelError, match="no RoPE method"):
        RopeSetting("magic", 32, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"original_context": "32"}, {"original_context": True}, {"target_context": 1 << 40},
        {"beta_fast": 0.5}, {"high_freq_factor": float("nan")}, {"attention_factor": -1.0},
        {"beta_fast": "32"}, {"long_factor": [1.0, float("inf")]}, {"long_factor": 3},
    ],
)  # fmt: skip
def test_hostile_settings_are_refused(changes):
    plain = RopeSetting("longrope", 32, 64, short_factor=(1.0,), long_factor=(1.0,)).as_dict()
    with pytest.raises(ModelError):
        RopeSetting.from_dict({**plain, **changes})


METHODS = st.sampled_from(["linear", "ntk", "dynamic", "yarn", "llama3"])
SHAPES = {
    "rotary_dim": st.sampled_from([8, 16, 64, 128]),
    "base": st.sampled_from([1e4, 5e5, 1e6]),
    "original_context": st.sampled_from([32, 256, 4096]),
}


@given(method=METHODS, factor=st.floats(1.0, 64.0), **SHAPES)
def test_no_method_turns_faster_than_none_nor_slower_than_linear(method, factor, **shape):
    longest = int(shape["original_context"] * factor)
    plain, _ = inv_freq_by_hand("none", **shape)
    found, _ = inv_freq_by_hand(method, factor=factor, sequence_length=longest, **shape)
    slowest = plain / (factor**2 if method == "dynamic" else factor)  # dynamic's own s is up to factor^2
    assert bool((found <= plain * (1 + 1e-12)).all())
    assert bool((found >= slowest * (1 - 1e-9)).all())


@given(method=METHODS, **SHAPES)
def test_factor_one_changes_nothing(method, **shape):
    plain, _ = inv_freq_by_hand("none", **shape)
    found, attention = inv_freq_by_hand(method, factor=1.0, **shape)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)
    assert attention == 1.0
