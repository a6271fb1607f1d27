"""Fused against plain: every function, every tiny architecture, and what must fall back."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor

from scaler_wizard.data.batches import MicroBatch, collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.models.adapters import adapters_off, attach_lora
from scaler_wizard.models.tiny import tiny_model
from scaler_wizard.training.fast_path import fast_path, plan_fast_path
from scaler_wizard.training.forward import make_objective, training_mode
from scaler_wizard.training.fused import GELU, GELU_TANH, SILU, Activation, gated_mlp, rms_norm
from scaler_wizard.training.lora_linear import LoraWeights, lora_linear

# PEFT 0.21.2 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
KINDS = ("llama", "qwen3", "phi3", "gemma", "gemma3", "mistral")
SFT = make_objective("sft")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def lora(n_in: int, n_out: int, seed: int, *, bias: bool = False) -> tuple[LoraWeights, Tensor, Tensor]:
    a, b = randn(3, n_in, seed=seed).requires_grad_(), randn(n_out, 3, seed=seed + 1).requires_grad_()
    weight = randn(n_out, n_in, seed=seed + 2)
    offset = randn(n_out, seed=seed + 3) if bias else None
    return LoraWeights(weight, offset, a.detach(), b.detach() * 1.5, 1.5), a, b


def plain_linear(x: Tensor, w: LoraWeights, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, w.weight, w.bias) + w.scale * F.linear(F.linear(x, a), b)


def same_gradients(fused: Tensor, plain: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)
    direction = randn(*fused.shape, seed=99)
    ours = torch.autograd.grad(fused, inputs, direction)
    theirs = torch.autograd.grad(plain, inputs, direction)
    for mine, reference in zip(ours, theirs, strict=True):
        assert reference.abs().max() > 1e-3
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [False, True])
def test_lora_linear_equals_its_formula(bias: bool) -> None:
    w, a, b = lora(6, 5, 1, bias=bias)
    x = randn(2, 7, 6).requires_grad_()
    same_gradients(lora_linear(x, a, b, w), plain_linear(x, w, a, b), [x, a, b])


@pytest.mark.parametrize(
    ("act", "plain"),
    [(SILU, F.silu), (GELU, F.gelu), (GELU_TANH, lambda x: F.gelu(x, approximate="tanh"))],
)
def test_gated_mlp_equals_its_formula(act: Activation, plain: Callable[[Tensor], Tensor]) -> None:
    gate, up, down = lora(6, 9, 1), lora(6, 9, 5), lora(9, 6, 9)
    x = randn(2, 7, 6).requires_grad_()
    masters = tuple(item for part in (gate, up, down) for item in part[1:])
    fused = gated_mlp(x, (gate[0], up[0], down[0]), act, masters)
    reference = plain_linear(plain(plain_linear(x, *gate)) * plain_linear(x, *up), *down)
    same_gradients(fused, reference, [x, *masters])


@pytest.mark.parametrize("unit_offset", [False, True])
@pytest.mark.parametrize("rows", [5, 5000])
def test_rms_norm_equals_its_formula(unit_offset: bool, rows: int) -> None:
    """5,000 rows of 64 are more than one block."""
    x, weight = randn(1, rows, 64).requires_grad_(), randn(64, seed=2)
    before = x.detach().clone()
    factor = 1 + weight if unit_offset else weight
    plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-3) * factor
    same_gradients(rms_norm(x, weight, 1e-3, unit_offset=unit_offset), plain, [x])
    assert torch.equal(x, before), "nothing is written into the input"


def micro_batch() -> MicroBatch:
    rng = np.random.RandomState(1)
    return collate(
        TokenRow(n, rng.randint(6, 262, length).astype(np.int32), rng.rand(length) < 0.7)
        for n, length in enumerate((9, 17, 17, 5))
    )


def adapted(kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    model = attach_lora(tiny_model(kind, dtype=dtype), rank=4, alpha=8.0, seed=0, **options)
    # B is zero at first, and then A has no gradient to compare.
    for number, (name, item) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            item.data.copy_(0.1 * randn(*item.shape, seed=number))
    return model


def run(model: Any, *, fused: bool, checkpointing: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    with training_mode(model, fused=fused, activation_checkpointing=checkpointing):
        result = SFT(model, micro_batch())
        (result.loss_sum / result.n_labels).backward()
    gradients = {name: item.grad for name, item in model.named_parameters() if item.requires_grad}
    return result.loss_sum.detach() / result.n_labels, gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_architecture_gives_the_same_loss_and_gradients(kind: str, checkpointing: bool) -> None:
    model = adapted(kind)
    plan = plan_fast_path(model)
    assert plan.linears, plan.sentence()
    assert plan.norms, plan.sentence()
    assert not plan.plain, plan.sentence()
    assert bool(plan.mlps) == (kind != "phi3"), "Phi-3's MLP has one fused projection and stays plain"
    plain_loss, plain = run(model, fused=False)
    loss, gradients = run(model, fused=True, checkpointing=checkpointing)
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=0)
    for name, reference in plain.items():
        assert reference.abs().max() > 1e-5, name
        torch.testing.assert_close(gradients[name], reference, rtol=1e-4, atol=2e-6)
        assert gradients[name].dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_as_near_to_the_truth_as_the_plain_layers(kind: str) -> None:
    """The truth: the same rounded weights in float32."""
    model = adapted(kind, torch.bfloat16)
    exact = adapted(kind)
    exact.load_state_dict(model.state_dict())
    truth_loss, truth = run(exact, fused=False)
    errors = {}
    for fused in (False, True):
        loss, gradients = run(model, fused=fused)
        distance = (
            torch.stack([(gradients[name] - truth[name]).square().sum() for name in truth]).sum().sqrt()
        )
        size = torch.stack([item.square().sum() for item in truth.values()]).sum().sqrt()
        errors[fused] = (abs(loss / truth_loss - 1).item(), (distance / size).item())
    assert errors[True][0] < 0.01
    assert errors[True][1] < 1.5 * errors[False][1] + 0.01


def test_methods_come_back_and_nothing_is_left() -> None:
    model = adapted("llama")
    with fast_path(model):
        assert any("forward" in vars(module) for module in model.modules())
    with pytest.raises(ZeroDivisionError), fast_path(model):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())


def test_adapters_off_is_the_base_inside_the_fast_path() -> None:
    model, ids = adapted("llama"), micro_batch().input_ids
    expected = tiny_model("llama")(input_ids=ids).logits
    with torch.no_grad(), fast_path(model):
        fused = model(input_ids=ids).logits
        with adapters_off(model):
            torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert (fused - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"lora_dropout": 0.1}, "dropout"),
        ({"use_dora": True}, "a variant of LoRA"),
        ({"target_modules": ["q_proj", "down_proj"]}, "an MLP that is not adapted as a whole"),
    ],
)
def test_what_does_not_qualify_stays_plain_and_gives_the_same(
    options: dict[str, Any], why: str | None
) -> None:
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **options})
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), config)
    plan = plan_fast_path(model)
    assert why in plan.plain.values()
    assert why in plan.sentence()
    results = []
    for fused in (False, True):
        torch.manual_seed(5)
        results.append(run(model, fused=fused))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    for name, reference in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], reference, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
def test_full_training_and_other_architectures_stay_plain() -> None:
    plan = plan_fast_path(tiny_model("llama").requires_grad_(True))
    assert (plan.linears, plan.mlps, plan.norms) == ({}, {}, {})
    assert set(plan.plain.values()) == {"a norm that is trained", "an MLP that is not adapted as a whole"}
    plan = plan_fast_path(adapted("gpt2"))
    assert set(plan.plain.values()) == {"layer.Linear on Conv1D"}


def test_hooks_inside_are_heard() -> None:
    model = adapted("llama")
    heard: list[str] = []
    mlp = model.get_base_model().model.layers[0].mlp
    mlp.up_proj.register_forward_hook(lambda *call: heard.append("up"))
    mlp.down_proj.base_layer.register_forward_hook(lambda *call: heard.append("down"))
    run(model, fused=True)
    assert sorted(heard) == ["down", "up"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_the_allocator_keeps_or_returns_what_is_freed() -> None:
    """In a process of its own: the setting lasts, and resident memory of this one is shared by all tests."""
    program = """
import sys, psutil, torch
from scaler_wizard.training.allocator import keep_freed_memory, return_freed_memory
assert (keep_freed_memory if sys.argv[1] == "keep" else return_freed_memory)()
rss = psutil.Process().memory_info
blocks = [torch.ones(1 << 20) for _ in range(40)]
full = rss().rss
del blocks
print(full - rss().rss)
"""
    returned = {
        way: int(subprocess.run([sys.executable, "-c", program, way], capture_output=True, check=True).stdout)
        for way in ("keep", "return")
    }
    assert returned["keep"] < 16 << 20
    assert returned["return"] > 120 << 20
