from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from scaler_wizard.inference.modes import InferenceLimits
from scaler_wizard.inference.scoring import score_positions, score_targets
from scaler_wizard.models.rope import RopeSetting, apply_rope
from scaler_wizard.models.tiny import tiny_model

PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
VOCABULARY = 262
ALONE = InferenceLimits(batch_tokens=1, chunk_tokens=10**6)


def rows(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def by_hand(model: Any, row: list[int], start: int, prefix: int = 0) -> list[float]:
    """All logits of the row without its last token, in one plain forward pass."""
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([row[:-1]])).logits[0].float()
    logprob_TV = logits_TV.log_softmax(-1)
    return [float(logprob_TV[p - 1, row[p]]) for p in range(start, len(row))]


def check(model: Any, sequences: list[list[int]], starts: list[int], limits: InferenceLimits) -> None:
    found = score_targets(model, sequences, starts, limits=limits)
    for row, start, got in zip(sequences, starts, found, strict=True):
        assert got == pytest.approx(by_hand(model, row, start), abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "gemma3", "gpt2"])
def test_batched_and_chunked_equals_one_plain_pass(kind: str) -> None:
    model = tiny_model(kind)
    sequences = rows([31, 30, 12, 9, 30, 2])
    starts = [1, 25, 11, 4, 29, 1]
    check(model, sequences, starts, InferenceLimits())
    check(model, sequences, starts, InferenceLimits(batch_tokens=64, chunk_tokens=7))


def test_logits_never_exceed_their_bound() -> None:
    model = tiny_model(max_position_embeddings=512)
    seen: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda m, i, out: seen.append(out.numel()))
    sequences = rows([400, 400])
    try:
        limits = InferenceLimits(chunk_tokens=128, logit_elements=40 * VOCABULARY)
        found = score_targets(model, sequences, [1, 390], limits=limits)
        assert max(seen) <= 40 * VOCABULARY
        seen.clear()
        score_targets(model, sequences, [396, 398], limits=InferenceLimits(chunk_tokens=128))
        # Four targets of two rows, whatever the length.
        assert max(seen) == 2 * 4 * VOCABULARY
    finally:
        hook.remove()
    assert found[0] == pytest.approx(by_hand(model, sequences[0], 1), abs=1e-4)


@pytest.mark.parametrize("method", ["linear", "ntk", "dynamic", "yarn", "llama3", "longrope"])
def test_every_rope_method_is_measured_as_it_is_applied(method: Any) -> None:
    factors = (
        {"short_factor": (1.0,) * 4, "long_factor": (1.0, 2.0, 3.0, 4.0)} if method == "longrope" else {}
    )
    setting = RopeSetting(method, 32, 128, **factors)
    model = tiny_model()
    apply_rope(model, setting)
    sequences = rows([128, 100, 100, 40, 20])
    starts = [120, 64, 99, 1, 10]
    limits = InferenceLimits(chunk_tokens=16, logit_elements=30 * VOCABULARY)
    found = score_targets(model, sequences, starts, limits=limits)
    fresh = tiny_model()
    apply_rope(fresh, setting)
    for row, start, got in zip(sequences, starts, found, strict=True):
        assert got == pytest.approx(by_hand(fresh, row, start), abs=1e-4)
    assert found == score_targets(model, sequences, starts, limits=limits)


def test_plain_transformers_dynamic_rope_does_not_remember_longer_rows() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
    model = tiny_model(rope_parameters=rope)
    sequences = rows([100, 50, 50])
    found = score_targets(model, sequences, [90, 40, 40])
    for row, start, got in zip(sequences, [90, 40, 40], found, strict=True):
        fresh = tiny_model(rope_parameters=rope)
        assert got == pytest.approx(by_hand(fresh, row, start), abs=1e-4)
    assert torch.equal(model.model.rotary_emb.inv_freq, tiny_model().model.rotary_emb.inv_freq)
    model(input_ids=torch.tensor([sequences[0]])).logits.sum().backward()


@PEFT_WARNS
def test_lora_adapters_count() -> None:
    plain = tiny_model()
    before = score_targets(plain, rows([20]), [10])
    model = get_peft_model(plain, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    check(model, rows([31, 20]), [20, 10], InferenceLimits(chunk_tokens=8))
    assert score_targets(model, rows([20]), [10]) != before


@PEFT_WARNS
def test_prefix_tuning_counts() -> None:
    model = get_peft_model(tiny_model(), PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.normal_()
    model.eval()
    check(model, rows([24, 20]), [20, 10], InferenceLimits(chunk_tokens=8))


def test_modes_come_back_and_parameters_still_train() -> None:
    model = tiny_model().train()
    model.model.layers[1].eval()
    score_targets(model, rows([12]), [4])
    assert model.training
    assert model.model.layers[0].mlp.training
    assert not model.model.layers[1].mlp.training
    model(input_ids=torch.tensor(rows([12]))).logits.sum().backward()


def test_prediction_is_the_argmax_of_all_or_of_the_candidates() -> None:
    model = tiny_model()
    row = rows([10])[0]
    with torch.no_grad():
        logits_V = model(input_ids=torch.tensor([row[:-1]])).logits[0, -1]
    (free,) = score_positions(model, [row], [[9]])
    (bound,) = score_positions(model, [row], [[9]], candidates=[5, 17, 40])
    assert free.predicted == (int(logits_V.argmax()),)
    assert bound.predicted == (max([5, 17, 40], key=lambda token: float(logits_V[token])),)
    assert free.logprobs == bound.logprobs


def test_rows_without_targets_and_progress() -> None:
    calls: list[tuple[int, int]] = []
    found = score_positions(
        tiny_model(), rows([8, 8, 5]), [[3], [], [1, 4]], on_progress=lambda *c: calls.append(c), limits=ALONE
    )
    assert [len(score.logprobs) for score in found] == [1, 0, 2]
    assert calls == [(2, 3), (3, 3)]
