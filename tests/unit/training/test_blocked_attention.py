"""Attention from matrix products: the formula, its gradients, its accuracy, and how much it holds at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from scaler_wizard.data.batches import collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.models.adapters import attach_lora
from scaler_wizard.training.attention import varlen_attention
from scaler_wizard.training.blocked_attention import blocked_attention, suits
from scaler_wizard.training.forward import make_objective, training_mode


def heads(n_rows: int, count: int, length: int, seed: int, width: int = 8) -> Tensor:
    """[N, heads, L, d] in the layout a projection leaves: heads of one position beside each other."""
    x = torch.randn(n_rows, length, count, width, generator=torch.Generator().manual_seed(seed))
    return x.double().transpose(1, 2)


def formula(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    length = query.shape[2]
    future = torch.ones(length, length).triu(1).bool()
    return ((query @ key.mT) * scale).masked_fill(future, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize(("length", "value_width"), [(1, 8), (128, 5), (300, 8)])
def test_equals_the_formula_with_gradients(key_heads: int, length: int, value_width: int) -> None:
    """300 tokens are two whole blocks and a part."""
    shapes = ((6, 8), (key_heads, 8), (key_heads, value_width))
    given = [heads(2, count, length, seed, width) for seed, (count, width) in enumerate(shapes)]
    inputs = [x.detach().requires_grad_() for x in given]
    ours, theirs = blocked_attention(*inputs, 0.7), formula(*inputs, 0.7)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    direction = heads(2, 6, length, 9, value_width)
    for mine, reference in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(theirs, inputs, direction),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("size", [1.0, 5.0])
def test_bfloat16_is_at_least_as_exact_as_torch(size: float) -> None:
    """Against float32 of the same rounded inputs; scores of standard deviation 1 and 25."""
    q, k, v, direction = (
        heads(1, count, 200, seed, 64).to(torch.bfloat16) for seed, count in enumerate((6, 2, 2, 6))
    )
    q, k = q * size, k * size
    exact = [x.float().requires_grad_() for x in (q, k, v)]
    truth = torch.autograd.grad(formula(*exact, 0.125), exact, direction.float())  # type: ignore[arg-type]
    errors = []
    for way in (blocked_attention, _torch_attention):
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        found = torch.autograd.grad(way(*inputs), inputs, direction)
        errors.append([
            float((mine.float() - right).norm() / right.norm())
            for mine, right in zip(found, truth, strict=True)
        ])  # fmt: skip
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 0.012
        assert ours < 1.5 * theirs


def _torch_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.elements = max(self.elements, made.untyped_storage().nbytes() // made.element_size())
        return made


def test_a_long_row_never_holds_its_score_matrix() -> None:
    """16,384 tokens: one head's scores would be 268 million numbers."""
    q, k, v = (heads(1, 1, 16_384, seed, 2).bfloat16().requires_grad_() for seed in range(3))
    with Largest() as seen:
        blocked_attention(q, k, v).sum().backward()
    assert seen.elements <= 1 << 22


def test_packed_segments_of_every_length_equal_each_row_alone() -> None:
    """Short segments go through torch's kernel and longer ones through ours, in one batch."""
    lengths = (70, 9, 70, 70, 130)
    query, key, value = (heads(1, count, sum(lengths), seed) for seed, count in enumerate((4, 2, 2)))
    assert [suits(query, length) for length in sorted(set(lengths))] == [False, True, True]
    out, _ = varlen_attention(torch.nn.Module(), query, key, value, None, segment_lengths=lengths)
    start = 0
    for length in lengths:
        at = slice(start, start + length)
        alone = formula(query[:, :, at], key[:, :, at], value[:, :, at], 8**-0.5)
        torch.testing.assert_close(out[:, at], alone.transpose(1, 2), rtol=1e-9, atol=1e-9)
        start += length


def test_nothing_of_a_step_grows_with_vocabulary_times_sequence() -> None:
    """4,096 targets of 50,000 tokens: all logits would be 205 million numbers."""
    vocabulary, tokens = 50_000, 4096
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = attach_lora(LlamaForCausalLM(config).bfloat16(), rank=2, alpha=4.0, seed=0)
    rows = [TokenRow(0, np.arange(tokens, dtype=np.int32), np.ones(tokens, bool))]
    with Largest() as seen, training_mode(model):
        make_objective("sft")(model, collate(rows)).loss_sum.backward()
    assert seen.elements <= 1 << 22
