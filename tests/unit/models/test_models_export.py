"""Exports: read back from disk and compared before they get their name."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scaler_wizard.errors import IncompatibleModelError, ModelError
from scaler_wizard.models.adapters import attach_lora, attach_prefix, load_adapter, trainable_parameters
from scaler_wizard.models.export import export_adapter, export_merged
from scaler_wizard.models.hashing import state_hash, weights_sha256
from scaler_wizard.models.merge import logit_comparison
from scaler_wizard.models.rope import RopeSetting, apply_rope
from scaler_wizard.models.tiny import TINY_CONTEXT, tiny_model, tiny_tokenizer

IDS = torch.arange(6, 134)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def trained(kind="llama", dtype=torch.float32, rope=None, **settings):
    model = attach_lora(tiny_model(kind, dtype=dtype), **{"rank": 4, "alpha": 8, **settings})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in trainable_parameters(model).items():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    if rope is not None:
        apply_rope(model, rope)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "method"),
    [("llama", "yarn"), ("llama", "dynamic"), ("qwen3", "ntk"), ("phi3", "llama3"), ("gemma", "linear"),
     ("mistral", "none"), ("gemma3", "yarn"), ("gpt_neox", "yarn")],
)  # fmt: skip
def test_a_merged_export_is_the_trained_model(kind, method, tmp_path):
    setting = RopeSetting(method, TINY_CONTEXT, 4 * TINY_CONTEXT)
    model = trained(kind, rope=setting)
    hashed = state_hash(model.state_dict())
    report = export_merged(model, tiny_tokenizer(), tmp_path / "out", setting)
    assert report.stored is not None
    assert report.long is not None
    assert report.stored.max_abs == 0.0
    assert (report.long.n_positions, report.long_context) == (4 * TINY_CONTEXT, 4 * TINY_CONTEXT)
    assert report.long.max_abs < 1e-3
    assert state_hash(model.state_dict()) == hashed
    # As any transformers user would load it, without this project.
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert logit_comparison(model, loaded, [IDS[:20], IDS]).ok
    assert loaded.config.rope_parameters == model.config.rope_parameters
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert tokenizer.model_max_length == 4 * TINY_CONTEXT
    assert report.weights_sha256 == weights_sha256(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_bfloat16_is_within_its_rounding(tmp_path):
    report = export_merged(trained(dtype=torch.bfloat16), tiny_tokenizer(), tmp_path / "out")
    assert report.stored is not None
    assert report.stored.max_abs == 0.0
    assert 0 < report.short.mean_abs < 0.05 * report.short.scale
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_a_fully_trained_model_exports_as_it_is(tmp_path):
    report = export_merged(tiny_model("gemma"), tiny_tokenizer(), tmp_path / "out")
    assert report.short.max_abs == 0.0


class _LosesItsScaling(type(tiny_model("llama"))):  # type: ignore[misc]
    """A model whose saving forgets the RoPE parameters, as exporters have done."""

    def save_pretrained(self, directory, **settings):
        super().save_pretrained(directory, **settings)
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
        path.write_text(json.dumps(config))


def test_an_export_that_lost_something_is_refused_and_removed(tmp_path):
    model = tiny_model()
    model.__class__ = _LosesItsScaling
    setting = RopeSetting("linear", TINY_CONTEXT, 64)
    apply_rope(model, setting)
    with pytest.raises(ModelError, match="do not give the trained model's outputs"):
        export_merged(model, tiny_tokenizer(), tmp_path / "out", setting)
    assert names(tmp_path) == []


def test_what_cannot_be_exported_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="not empty"):
        export_merged(tiny_model(), tiny_tokenizer(), tmp_path / "full")
    with pytest.raises(ModelError, match="not empty"):
        export_adapter(trained(), tmp_path / "full")
    assert names(tmp_path / "full") == ["thesis.txt"]
    with pytest.raises(IncompatibleModelError, match="cannot be merged"):
        export_merged(attach_prefix(tiny_model(), 2), tiny_tokenizer(), tmp_path / "out")
    with pytest.raises(IncompatibleModelError, match="without an adapter"):
        export_adapter(tiny_model(), tmp_path / "out")
    with pytest.raises(ModelError, match="apply the setting before"):
        export_merged(tiny_model(), tiny_tokenizer(), tmp_path / "out", RopeSetting("linear", 32, 64))
    assert not (tmp_path / "out").exists()


def test_generation_settings_that_transformers_would_not_save_are_stated(tmp_path):
    model = tiny_model()
    model.generation_config.temperature = 0.6  # as Llama 2 was published: a temperature without do_sample
    (tmp_path / "out").mkdir()  # an empty directory is taken over
    export_merged(model, tiny_tokenizer(), tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (stored["do_sample"], stored["temperature"]) == (True, 0.6)
    assert model.generation_config.do_sample is not True


@pytest.mark.parametrize("strategy", ["lora", "prefix"])
def test_an_adapter_export_loads_on_the_base(strategy, tmp_path):
    setting = RopeSetting("yarn", TINY_CONTEXT, 64)
    model = trained(rope=setting) if strategy == "lora" else attach_prefix(tiny_model(), 3).eval()
    if strategy == "prefix":
        apply_rope(model, setting)
    report = export_adapter(model, tmp_path / "out")
    assert report.short.max_abs == 0.0
    base = tiny_model()
    stored = json.loads((tmp_path / "out" / "rope_setting.json").read_text())
    apply_rope(base, RopeSetting.from_dict(stored))
    again = load_adapter(base, tmp_path / "out")
    assert logit_comparison(model, again, [IDS[:20], IDS[:60]]).max_abs == 0.0


def test_the_card_carries_provenance_and_neutralises_it(tmp_path):
    provenance = {"base_model": 'me/base"\nlicense: none', "run": "a|b\n# <script>x"}
    report = export_adapter(trained(), tmp_path / "out", title="My model\n---", provenance=provenance)
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'base_model: "me/base\\" license: none"' in card
    assert "| run | a\\|b # &lt;script>x |" in card
    assert "\n# My model ---\n" in card
    assert report.weights_sha256 in card
    assert report.sentences()[0] in card
