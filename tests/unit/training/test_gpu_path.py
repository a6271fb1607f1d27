"""What a GPU adds gives the same numbers: varlen attention, Liger's loss, compiled blocks, 4-bit bases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scaler_wizard.data.batches import collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.losses.liger import can_use_liger, liger_cross_entropy, liger_installed
from scaler_wizard.losses.sft import Head, sft_loss
from scaler_wizard.training.attention import varlen_attention
from scaler_wizard.training.compiled import compile_blocks
from scaler_wizard.training.forward import make_objective, training_mode
from scaler_wizard.training.varlen import can_use_varlen, segment_bounds, segments_varlen

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "training_gpu.py"


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.2,
        )
    )  # fmt: skip


def test_the_cpu_keeps_to_torch() -> None:
    query = torch.zeros(1, 4, 7, 64, dtype=torch.bfloat16)
    assert not can_use_varlen(query, 0.0)
    assert not can_use_liger(torch.zeros(3, 8), 1.0)


def test_segment_bounds() -> None:
    assert segment_bounds((3, 1, 4), torch.device("cpu")).tolist() == [0, 3, 4, 8]
    assert segment_bounds((3, 1, 4), torch.device("cpu")).dtype == torch.int32


@pytest.mark.parametrize("window", [None, 5])
def test_varlen_call_has_the_right_shapes(window: int | None) -> None:
    """Without a GPU the kernel's own shape function is as far as a call can go."""
    query = torch.zeros(1, 4, 12, 64, dtype=torch.bfloat16, device="meta")
    key = torch.zeros(1, 2, 12, 64, dtype=torch.bfloat16, device="meta")
    found = segments_varlen(query, key, key, (7, 5), 0.125, window)
    assert found.shape == (1, 12, 4, 64)
    assert found.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore")  # what dynamo imports to trace warns about itself
def test_compiled_blocks_change_nothing_but_speed() -> None:
    """The eager backend traces as the others do, and needs no compiler."""
    gradients = []
    for compiled in (False, True):
        model = small_llama()
        if compiled:
            assert compile_blocks(model, backend="eager") == 2 * 3
        for lengths in ((5, 9), (3, 4, 11)):
            rows = [TokenRow(0, np.arange(n, dtype=np.int32), np.ones(n, dtype=np.bool_)) for n in lengths]
            with training_mode(model):
                make_objective("sft")(model, collate(rows)).loss_sum.backward()
        gradients.append([item.grad for item in model.parameters()])
    for plain, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, traced)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_benchmark_says_why_it_cannot_run() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "CUDA" in json.loads(done.stdout.splitlines()[-1])["skipped"]


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("window", [None, 6])
def test_varlen_attention_agrees_with_sdpa(window: int | None) -> None:
    lengths = (33, 7, 7, 120)
    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, sum(lengths), 64, device="cuda") for heads in (8, 2, 2)]
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        # bf16 goes through the kernel, fp32 through scaled_dot_product_attention.
        q, k, v = (item.to(torch.bfloat16).to(dtype).requires_grad_() for item in tensors)
        assert can_use_varlen(q, 0.0) == (dtype == torch.bfloat16)
        out, _ = varlen_attention(
            torch.nn.Identity(), q, k, v, None, sliding_window=window, segment_lengths=lengths
        )
        out.float().square().sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine.float(), reference, rtol=0.05, atol=0.05)


@pytest.mark.gpu
@NO_GPU
@pytest.mark.skipif(not liger_installed(), reason="the optional extra `gpu` is not installed")
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_liger_agrees_with_our_chunks(softcap: float | None) -> None:
    torch.manual_seed(0)
    weight = torch.randn(503, 64, device="cuda") * 0.2
    hidden, targets = torch.randn(1, 90, 64, device="cuda"), torch.randint(0, 503, (1, 90), device="cuda")
    head = Head(weight, None, 1.0, softcap)
    mine, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    # Naming the chunk keeps `sft_loss` from using Liger itself.
    reference = sft_loss(mine, head, targets, chunk_rows=32)
    reference.loss_sum.backward()
    loss, correct = liger_cross_entropy(theirs[0, :-1], weight, None, softcap, targets[0, 1:])
    loss.backward()
    assert loss.item() == pytest.approx(reference.loss_sum.item(), rel=1e-4)
    assert correct.item() == reference.metrics["correct"].item()
    torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@NO_GPU
def test_qlora_trains_a_four_bit_base(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the optional extra `gpu` is not installed")
    from scaler_wizard.data.batches import Batches
    from scaler_wizard.models.adapters import attach
    from scaler_wizard.models.load import load_model
    from scaler_wizard.training.loop import TrainSettings, train

    loaded = load_model("seedling", dtype=torch.bfloat16, device="cuda", quantize_4bit=True)
    model = attach(loaded.model, "qlora", rank=4, alpha=8)
    rows = [TokenRow(0, np.arange(16, 80, dtype=np.int32), np.ones(64, dtype=np.bool_))]
    batches = Batches(rows, context=64, batch_tokens=64, micro_batch_tokens=64, seed=0)
    settings = TrainSettings(total_steps=20, learning_rate=5e-3)
    losses = [result.loss for result in train(model, batches, make_objective("sft"), settings, device="cuda")]
    assert losses[-1] < 0.9 * losses[0]
