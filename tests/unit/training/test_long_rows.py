"""Long rows: no tensor grows with the square of the length, and 32,768 tokens fit a stated bound."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from scaler_wizard.data.batches import collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.inference.generate import generate
from scaler_wizard.inference.requests import Request
from scaler_wizard.inference.scoring import score_targets
from scaler_wizard.training.attention import varlen_attention
from scaler_wizard.training.forward import make_objective, training_mode

LENGTH = 4096
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "long_inputs.py"
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2 * LENGTH,
}  # fmt: skip


class Largest(TorchDispatchMode):
    """Remembers the most elements of any tensor that an operation gave back, backward passes included."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def build(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "windowed":
        return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=300)).eval()
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def ids() -> list[int]:
    return np.random.RandomState(0).randint(0, 64, LENGTH).tolist()


@pytest.mark.parametrize("kind", ["plain", "windowed"])
@pytest.mark.parametrize("what", ["training", "checkpointed training", "scoring", "generation"])
def test_nothing_is_as_large_as_the_square(kind: str, what: str) -> None:
    model = build(kind)
    with Largest() as largest:
        if what == "scoring":
            assert len(score_targets(model, [ids()], [1])[0]) == LENGTH - 1
        elif what == "generation":
            assert len(generate(model, [Request(tuple(ids()), 2)])[0].tokens) == 2
        else:
            micro = collate([TokenRow(0, np.array(ids(), dtype=np.int32), np.ones(LENGTH, dtype=np.bool_))])
            with training_mode(model, activation_checkpointing="checkpointed" in what):
                make_objective("sft")(model, micro).loss_sum.backward()
    # A chunk of 512 queries sees at most all keys: an eighth of the square.
    assert LENGTH * 32 <= largest.elements <= LENGTH * LENGTH // 4


def test_the_square_would_be_seen() -> None:
    """Guards the test above: attention that keeps its scores is caught."""
    model = build("plain")
    model.set_attn_implementation("eager")
    with Largest() as largest, torch.no_grad():
        model(input_ids=torch.tensor([ids()]), use_cache=False, logits_to_keep=1)
    assert largest.elements >= LENGTH * LENGTH


@pytest.mark.parametrize("window", [1, 3, 700])
def test_windows_in_blocks_equal_one_mask(window: int) -> None:
    torch.manual_seed(0)
    length = 1300
    q, k, v = (torch.randn(1, heads, length, 8, requires_grad=True) for heads in (4, 2, 2))
    out, _ = varlen_attention(
        torch.nn.Identity(), q, k, v, None, sliding_window=window, segment_lengths=(length,)
    )
    at = torch.arange(length)
    distance = at[:, None] - at
    mask = (distance >= 0) & (distance < window)
    reference = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(out, reference.transpose(1, 2))
    mine = torch.autograd.grad(out.square().sum(), (q, k, v))
    theirs = torch.autograd.grad(reference.square().sum(), (q, k, v))
    for first, second in zip(mine, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_32k_tokens_stay_within_the_stated_bound() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens"] == 32768
    assert found["within_bound"], found
    for name in ("scoring", "generation", "training", "training_checkpointed"):
        assert found[f"{name}_growth"] < 8, "4 is the length's own, 16 the square's"
    assert found["training_checkpointed_peak_bytes"] < found["training_peak_bytes"]
