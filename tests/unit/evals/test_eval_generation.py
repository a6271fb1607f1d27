from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model

from scaler_wizard.evals.generation import generate_batch, stop_token_ids
from scaler_wizard.inference.modes import InferenceLimits
from scaler_wizard.models.rope import RopeSetting, apply_rope
from scaler_wizard.models.tiny import tiny_model, tiny_tokenizer

PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
RNG = random.Random(0)
PROMPTS = [[RNG.randrange(6, 262) for _ in range(length)] for length in (3, 14, 9, 14, 1)]


def naive_greedy(model: Any, prompt: list[int], n: int, stops: frozenset[int]) -> list[int]:
    """No cache, no batch, no padding."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < n:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        if token in stops:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2"])
def test_batched_greedy_equals_one_by_one(kind: str) -> None:
    # Tied embeddings of a random model repeat the last token for ever.
    model = tiny_model(kind, tie_word_embeddings=False)
    free = [naive_greedy(model, prompt, 12, frozenset()) for prompt in PROMPTS]
    # Stop on tokens that really come up, so that rows leave the batch at different times.
    stops = frozenset({free[0][4], free[1][2], free[2][0]})
    expected = [naive_greedy(model, prompt, 12, stops) for prompt in PROMPTS]
    assert len({len(row) for row in expected}) > 2
    for limits in (InferenceLimits(), InferenceLimits(chunk_tokens=4), InferenceLimits(batch_tokens=40)):
        assert generate_batch(model, tiny_tokenizer(), PROMPTS, 12, stops, limits=limits) == expected


def test_dynamic_rope_batches_equal_one_at_a_time() -> None:
    model = tiny_model()
    apply_rope(model, RopeSetting("dynamic", 32, 128))
    prompts = [[6 + (7 * i + j) % 200 for j in range(length)] for i, length in enumerate([50, 40, 50])]
    together = generate_batch(model, tiny_tokenizer(), prompts, 6, frozenset())
    alone = [generate_batch(model, tiny_tokenizer(), [prompt], 6, frozenset())[0] for prompt in prompts]
    assert together == alone


@PEFT_WARNS
def test_prefix_tuning_generates_from_its_prefix() -> None:
    model = get_peft_model(tiny_model(), PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.normal_()
    model.eval()
    expected = [naive_greedy(model, prompt, 6, frozenset()) for prompt in PROMPTS]
    assert generate_batch(model, tiny_tokenizer(), PROMPTS, 6, frozenset()) == expected


def test_samples_depend_on_their_seed_and_not_on_their_batch() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    seeds = [11, 12, 13, 14, 15]
    together = generate_batch(model, tokenizer, PROMPTS, 10, frozenset(), temperature=1.0, seeds=seeds)
    for i in (1, 3):
        (alone,) = generate_batch(
            model, tokenizer, [PROMPTS[i]], 10, frozenset(), temperature=1.0, seeds=[seeds[i]]
        )
        assert alone == together[i]
    other = generate_batch(model, tokenizer, PROMPTS, 10, frozenset(), temperature=1.0, seeds=[1] * 5)
    assert other != together


def test_stop_tokens_come_from_tokenizer_and_generation_config() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = [9, 10]
    assert stop_token_ids(model, tiny_tokenizer()) == {2, 9, 10}
    assert generate_batch(model, tiny_tokenizer(), ["some text"], 1) != [[]]
