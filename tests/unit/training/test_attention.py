"""Packed rows do not see each other, for every model family; generation keeps working."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from scaler_wizard.data.batches import collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.training.attention import NAME, packed_attention, supports_varlen
from scaler_wizard.training.forward import check_head, hidden_states, make_objective, training_mode

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 128,
}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES, sliding_window=None)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=8)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "mistral, window of 6": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)),
    "gemma2, soft caps": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SIZES, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, final_logit_softcapping=2.0
        )
    ),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # At initialisation logits are near 0 and every test would pass: make the model say something.
            parameter.mul_(1 if parameter.dim() == 1 else 8)
    return model


def some_rows(lengths: tuple[int, ...], vocabulary: int = 61) -> list[TokenRow]:
    rng = np.random.RandomState(1)
    return [
        TokenRow(n, rng.randint(1, vocabulary, length).astype(np.int32), rng.rand(length) < 0.7)
        for n, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_packed_loss_equals_the_sum_of_the_rows_alone(name: str) -> None:
    model = build(name)
    rows = some_rows((5, 17, 17, 1, 9, 23))
    objective = make_objective("sft")
    packed = collate(rows)
    with torch.no_grad(), packed_attention(model) as used:
        assert used == ("eager" if name.startswith("gemma2") else NAME)
        together = objective(model, packed).loss_sum.item()
    alone = 0.0
    for row in rows:
        # The reference is transformers' own forward pass of one row with its own attention and loss.
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(row.trained)[None], ids, -100)
        n_labels = row.n_labels
        if n_labels:
            with torch.no_grad():
                alone += model(input_ids=ids, labels=labels, use_cache=False).loss.item() * n_labels
    assert packed.n_labels == sum(row.n_labels for row in rows)
    assert together == pytest.approx(alone, rel=1e-5)
    with torch.no_grad(), packed_attention(model):
        moved = objective(model, collate(rows[::-1])).loss_sum.item()
    assert moved == pytest.approx(together, rel=1e-5), "where a row lies in the pack changes nothing"


def test_window_of_the_model_matters_in_this_test() -> None:
    """Guards the sliding-window case above: without a window the loss is another one."""
    rows = some_rows((23,))
    losses = []
    for window in (6, None):
        model = build("mistral, window of 6")
        model.config.sliding_window = window
        with torch.no_grad(), packed_attention(model):
            losses.append(make_objective("sft")(model, collate(rows)).loss_sum.item())
    assert abs(losses[0] - losses[1]) > 0.01 * losses[1]


def test_no_gradient_crosses_a_segment_bound() -> None:
    model = build("llama")
    micro = collate(some_rows((6, 7)))
    embedded = model.get_input_embeddings()(micro.input_ids).detach().requires_grad_()
    model.get_input_embeddings().register_forward_hook(lambda *call: embedded)
    with packed_attention(model):
        hidden_states(model, micro)[0, 6:].square().sum().backward()
    assert embedded.grad is not None
    assert not embedded.grad[0, :6].any()
    assert embedded.grad[0, 6:].any(dim=-1).all()


def test_generation_works_between_and_after_steps() -> None:
    model = build("qwen3")
    prompt = torch.tensor([[3, 9, 27, 20]])
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    before = model.generate(prompt, **options)
    with training_mode(model):
        assert model.training
        assert model.config._attn_implementation == NAME
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model.generate(prompt, **options), before)


def test_attention_is_put_back_after_an_error() -> None:
    model = build("llama")
    with pytest.raises(ZeroDivisionError), training_mode(model, activation_checkpointing=True):
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"
    assert not model.is_activation_checkpointing


def test_padding_or_missing_lengths_are_refused() -> None:
    model = build("llama")
    ids = torch.ones(1, 4, dtype=torch.long)
    with packed_attention(model):
        with pytest.raises(AssertionError, match="segment_lengths"):
            model(input_ids=ids)
        with pytest.raises(AssertionError, match="padding mask"):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), segment_lengths=(4,))


def test_models_that_are_not_plain_causal_softmax() -> None:
    assert not supports_varlen(Gemma2Config(**SIZES))
    assert not supports_varlen(LlamaConfig(**SIZES, is_causal=False))
    assert supports_varlen(Qwen3Config(**SIZES))


@pytest.mark.parametrize("name", MODELS)
def test_head_agrees_with_the_models_own_logits(name: str) -> None:
    check_head(build(name))


def test_activation_checkpointing_changes_no_gradient() -> None:
    micro = collate(some_rows((6, 11)))
    gradients = []
    for checkpointing in (False, True):
        model = build("llama")
        with training_mode(model, activation_checkpointing=checkpointing):
            make_objective("sft")(model, micro).loss_sum.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
