"""Vocabulary growth: mean-of-parts rows, tying kept, refusals that change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scaler_wizard.errors import IncompatibleModelError, SpecError
from scaler_wizard.models.adapters import attach_lora
from scaler_wizard.models.export import export_merged
from scaler_wizard.models.hashing import state_hash
from scaler_wizard.models.load import load_model
from scaler_wizard.models.tiny import tiny_model, tiny_tokenizer
from scaler_wizard.models.vocabulary import grow_vocabulary

NEW = ("hello", "東京", "<tool>")


@pytest.mark.parametrize("kind", ["llama", "qwen3"])  # untied, tied
def test_new_rows_are_the_mean_of_their_parts(kind):
    model, tokenizer = tiny_model(kind), tiny_tokenizer()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    growth = grow_vocabulary(model, tokenizer, NEW)
    assert growth.ids == (262, 263, 264)
    assert (growth.rows_before, growth.rows_after, growth.tied) == (262, 265, kind == "qwen3")
    assert [len(parts) for parts in growth.parts] == [5, 6, 6]
    tables = {"model.embed_tokens.weight"} | (set() if growth.tied else {"lm_head.weight"})
    for name, value in model.named_parameters():
        assert torch.equal(value[: len(before[name])], before[name])
        if name in tables:
            expected = torch.stack([before[name][list(parts)].mean(0) for parts in growth.parts])
            torch.testing.assert_close(value[262:], expected)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == growth.tied
    assert tokenizer("hello<tool>x", add_special_tokens=False).input_ids[:2] == [262, 264]
    assert tokenizer.decode([262, 263]) == "hello東京"


def test_a_repeated_piece_counts_as_often_as_it_occurs():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    table = model.get_input_embeddings().weight.detach().clone()
    growth = grow_vocabulary(model, tokenizer, ["aab"])
    a, _, b = growth.parts[0]
    torch.testing.assert_close(model.get_input_embeddings().weight[262], (2 * table[a] + table[b]) / 3)


def test_unused_rows_are_filled_before_the_table_grows():
    model = tiny_model(vocab_size=264)
    growth = grow_vocabulary(model, tiny_tokenizer(), ["ab", "cd"])
    assert (growth.ids, growth.rows_after) == ((262, 263), 264)
    assert model.config.vocab_size == 264


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_saved_and_reloaded_models_are_equal(kind, tmp_path):
    model, tokenizer = tiny_model(kind), tiny_tokenizer()
    grow_vocabulary(model, tokenizer, NEW)
    wrapped = attach_lora(model, rank=2, alpha=4)
    report = export_merged(wrapped, tokenizer, tmp_path / "grown")
    assert report.stored is not None
    assert report.stored.max_abs == 0.0
    loaded = load_model(tmp_path / "grown", dtype=torch.float32, device="cpu")
    assert loaded.tokenizer("東京", add_special_tokens=False).input_ids == [263]
    assert loaded.model.config.tie_word_embeddings == (kind == "qwen3")


REFUSED = [
    ([], "0 new tokens"),
    (["tok"] * 5000, "5,000 new tokens"),
    (["ab", "ab"], "twice"),
    ([""], "not blank"),
    (["  "], "not blank"),
    (["a\x00b"], "printable"),
    (["\t\n\x07"], "not blank|printable"),
    (["a\ud800"], "printable"),
    (["x" * 200], "200 bytes"),
    (["a"], "one token already"),
    (["<|end|>"], "one token already"),
]


@pytest.mark.parametrize(("tokens", "message"), REFUSED)
def test_bad_texts_are_refused_and_nothing_changes(tokens, message):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    hashed = state_hash(model.state_dict())
    with pytest.raises(SpecError, match=message):
        grow_vocabulary(model, tokenizer, ["good one", *tokens] if len(tokens) == 1 else tokens)
    assert (state_hash(model.state_dict()), len(tokenizer)) == (hashed, 262)


def test_models_that_cannot_grow_are_refused():
    with pytest.raises(IncompatibleModelError, match="with an adapter"):
        grow_vocabulary(attach_lora(tiny_model(), rank=2, alpha=4), tiny_tokenizer(), ["ab"])
    with pytest.raises(IncompatibleModelError, match="262 tokens for 200"):
        grow_vocabulary(tiny_model(vocab_size=200), tiny_tokenizer(), ["ab"])
    untied = tiny_model("qwen3")
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    with pytest.raises(IncompatibleModelError, match="configuration says otherwise"):
        grow_vocabulary(untied, tiny_tokenizer(), ["ab"])
    # A byte-level decoder reads "ü" inside an added token as the byte 0xFC, which is no text.
    with pytest.raises(IncompatibleModelError, match="does not keep 'Zürich' as one token"):
        grow_vocabulary(tiny_model(), tiny_tokenizer(), ["Zürich"])
    second = tiny_model()
    second.model.embed_tokens_per_layer = nn.Embedding(262, 4)
    with pytest.raises(IncompatibleModelError, match="second table"):
        grow_vocabulary(second, tiny_tokenizer(), ["ab"])
