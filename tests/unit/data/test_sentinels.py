"""What no base model writes by itself is found; what it does write is let through."""

from __future__ import annotations

from itertools import islice

import pytest

from scaler_wizard.data.corpus import documents
from scaler_wizard.data.sentinels import look_for_sentinels, suspect_instruct, template_tokens


@pytest.mark.parametrize(
    "token",
    ["<|im_start|>", "<|assistant|>", "[INST]", "[/INST]", "<<SYS>>", "<start_of_turn>", "<end_of_turn>",
     "<|eot_id|>", "<\uff5cAssistant\uff5c>"],
)  # fmt: skip
def test_template_tokens_of_common_formats_are_found(token: str) -> None:
    report = look_for_sentinels(["a b c"] * 99 + [f"a {token} b"])
    assert report.with_tokens == 1
    assert not report.clean


def test_tokens_of_the_base_s_own_tokenizer_are_found() -> None:
    assert template_tokens("a §turn§ b", ["§turn§", ""]) == ["§turn§"]


def test_library_text_is_clean() -> None:
    texts = [document.text[:2000] for document in islice(documents("held_out"), 40)]
    assert look_for_sentinels(texts).clean


def test_an_assistant_is_recognised_by_what_it_says() -> None:
    texts = (
        ["Certainly! Here is the list: a b"] * 5
        + ["As an AI language model, I can\u2019t do that."]
        + ["x"] * 44
    )
    report = look_for_sentinels(texts)
    assert (report.with_tokens, report.with_phrases) == (0, 6)
    reasons = suspect_instruct(report, name="llama-3-8b")
    assert len(reasons) == 1
    assert "assistant" in reasons[0]


def test_a_quoted_assistant_is_no_sign() -> None:
    report = look_for_sentinels(["He wrote: as an AI I see no colours"] + ["text"] * 99)
    assert report.clean
    assert not suspect_instruct(report, name="base-model-v2")


@pytest.mark.parametrize("name", ["Qwen2.5-1.5B-Instruct", "gemma-3-4b-it", "models/tiny-chat"])
def test_a_name_gives_it_away(name: str) -> None:
    assert suspect_instruct(look_for_sentinels(["a"]), name=name)


@pytest.mark.parametrize("name", ["Qwen2.5-1.5B", "digital-base", "seedling", "items"])
def test_a_name_that_only_looks_like_it_does_not(name: str) -> None:
    assert not suspect_instruct(look_for_sentinels(["a"]), name=name)


def test_following_instructions_in_the_template_only_gives_it_away() -> None:
    clean = look_for_sentinels(["a"])
    assert suspect_instruct(clean, templated_accuracy=0.9, raw_accuracy=0.1)
    assert not suspect_instruct(clean, templated_accuracy=0.02, raw_accuracy=0.0)
