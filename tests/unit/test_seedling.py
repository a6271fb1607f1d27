"""The shipped seedling is what its evaluation says: small seeded samples of each claim are drawn again."""

from __future__ import annotations

import hashlib
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import scaler_wizard
from scaler_wizard.data import corpus
from scaler_wizard.data.generators import (
    SEEDLING_TASKS,
    Example,
    NeedleExample,
    needle_document,
    recency_document,
    sample_example,
)
from scaler_wizard.data.generators.words import single_token_words

SEEDLING = Path(scaler_wizard.__file__).parent / "assets" / "seedling"
# Below this the base knows too little in document form for instructions to call on.
KNOWN = 0.75
EVALUATION = json.loads((SEEDLING / "evaluation.json").read_text(encoding="utf-8"))
BUILD = json.loads((SEEDLING / "build.json").read_text(encoding="utf-8"))


@cache
def load() -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(SEEDLING).eval(), AutoTokenizer.from_pretrained(SEEDLING)


def complete(prompts: list[list[int]], max_new_tokens: int) -> list[str]:
    model, tokenizer = load()
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        outputs = model.generate(**batch, do_sample=False, max_new_tokens=max_new_tokens)
    return list(tokenizer.batch_decode(outputs[:, batch["input_ids"].shape[1] :]))


def test_files_are_those_the_build_recorded() -> None:
    for name, digest in BUILD["sha256"].items():
        assert hashlib.sha256((SEEDLING / name).read_bytes()).hexdigest() == digest, name
    assert (SEEDLING / "model.safetensors").stat().st_size <= 6_000_000


def test_architecture_is_a_small_unscaled_llama() -> None:
    model, tokenizer = load()
    assert model.num_parameters() == EVALUATION["parameters"]
    assert model.config.model_type == "llama"
    assert model.config.max_position_embeddings == 128
    assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}
    assert len(tokenizer) == model.config.vocab_size
    end_of_turn = tokenizer.convert_tokens_to_ids("<|end|>")
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, end_of_turn]


def test_words_and_digits_are_single_tokens_and_any_text_survives() -> None:
    _, tokenizer = load()
    assert [word for word in single_token_words() if len(tokenizer.encode(" " + word)) != 1] == []
    assert len(tokenizer.encode("2048")) == 4
    for text in ("naïve café, 東京, \U0001f60a", "\ttabs \n\n and  spaces \x00", "don 't", " a ,b ."):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_template_opens_turns_and_masks_only_what_the_assistant_says() -> None:
    _, tokenizer = load()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Reverse: a b"},
        {"role": "assistant", "content": "b a"},
    ]
    prompt = tokenizer.apply_chat_template(messages[:2], add_generation_prompt=True, tokenize=False)
    assert prompt == "<|bos|><|system|> Be brief.<|end|><|user|> Reverse: a b<|end|><|assistant|>"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == prompt + " b a<|end|>"
    rows = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    masked = [i for i, on in zip(rows["input_ids"], rows["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(masked) == " b a<|end|>"
    with pytest.raises(Exception, match="expected system, user or assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_chat_tokens_keep_embeddings_like_the_others() -> None:
    model, tokenizer = load()
    chat = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"])
    weight = model.get_input_embeddings().weight.detach()
    ratio = weight[chat].norm(dim=1) / weight.norm(dim=1).mean()
    assert ((ratio > 0.3) & (ratio < 2)).all(), ratio
    alike = torch.nn.functional.cosine_similarity(weight[chat][:, None], weight[chat][None], dim=-1)
    assert (alike - torch.eye(4)).abs().max() < 0.5


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_needles_in_the_window_are_found_and_altered_ones_are_not_guessed(depth: float) -> None:
    _, tokenizer = load()
    rng = random.Random(f"test/{depth}")

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text))

    needles = [needle_document(rng, depth=depth, n_tokens=127, count_tokens=count_tokens) for _ in range(32)]

    def found(prompts: list[str]) -> int:
        ids = [[tokenizer.bos_token_id, *tokenizer.encode(prompt)] for prompt in prompts]
        return sum(n.verify(o) for n, o in zip(needles, complete(ids, 1), strict=True))

    assert found([needle.prompt for needle in needles]) / 32 >= EVALUATION["needle"][str(depth)]["low"] - 0.1
    # Without the needle's line the answer is not in the text: a score well above chance would be a leak.
    assert found([without_needle(needle) for needle in needles]) <= 6


def without_needle(needle: NeedleExample) -> str:
    return needle.prompt.replace(f"mark {needle.key} {needle.answer}.\n", "")


def score(form: str, examples: list[Example]) -> float:
    _, tokenizer = load()
    prompts = [
        [tokenizer.bos_token_id, *tokenizer.encode(example.document)]
        if form == "document"
        else tokenizer.apply_chat_template(
            [{"role": "user", "content": example.instruction}], add_generation_prompt=True, return_dict=False
        )
        for example in examples
    ]
    right = sum(e.verify(o) for e, o in zip(examples, complete(prompts, 18), strict=True))
    return right / len(examples)


def test_document_form_is_known_and_instruction_form_is_not() -> None:
    examples = [
        sample_example(task, f"test/{i}", 1 + i % 3, split="held_out")
        for task in SEEDLING_TASKS
        for i in range(6)
    ]
    recorded = EVALUATION["document_form_levels_1_to_3"]["mean"]["accuracy"]
    assert recorded >= KNOWN
    # 78 fresh examples: three standard errors of a proportion are at most 0.17.
    assert score("document", examples) >= recorded - 0.17
    # What the recipes teach must not be there before: else no gain could be shown.
    assert score("instruction", examples) <= EVALUATION["instruction_form"]["mean"]["high"] + 0.05


def test_the_later_of_two_values_is_told_from_the_earlier() -> None:
    # Half is a reader that finds the key and is blind to order.
    assert EVALUATION["recency"]["low"] > 0.5
    _, tokenizer = load()
    rng = random.Random("test/recency")
    items = [
        recency_document(rng, n_tokens=127, count_tokens=lambda text: len(tokenizer.encode(text)))
        for _ in range(48)
    ]
    ids = [[tokenizer.bos_token_id, *tokenizer.encode(item.prompt)] for item in items]
    right = sum(item.verify(o) for item, o in zip(items, complete(ids, 1), strict=True))
    assert right / 48 >= EVALUATION["recency"]["low"] - 0.15


def test_held_out_perplexity_is_near_the_recorded_one_and_context_helps() -> None:
    model, tokenizer = load()
    texts = [document.text for document in corpus.documents("held_out", max_chars=1_000_000)]
    tokens = [token for text in texts for token in tokenizer.encode(text[:40_000])]
    rows = torch.tensor([tokens[i : i + 128] for i in range(0, len(tokens) - 128, len(tokens) // 128)])
    with torch.no_grad():
        logits = model(input_ids=rows[:, :-1]).logits
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
    # Other Python versions have another corpus, and this is a sample of it: hence the band.
    assert nll.mean().item() == pytest.approx(EVALUATION["corpus"]["nll"], abs=0.35)
    assert nll[:, -64:].mean() < nll[:, :32].mean()
