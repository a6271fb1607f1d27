"""The chunked cross-entropy against torch's own, its gradients against finite differences, its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from scaler_wizard.losses.registry import LOSSES
from scaler_wizard.losses.sft import IGNORED, Head, head_logits, sft_loss

HEADS = [
    pytest.param(False, 1.0, None, id="plain"),
    pytest.param(True, 1.0, None, id="bias"),
    pytest.param(True, 0.25, 3.0, id="bias, scale and softcap"),
]


def case(
    dtype: torch.dtype, bias: bool, scale: float, softcap: float | None
) -> tuple[torch.Tensor, Head, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 5, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(11, 5, dtype=dtype, generator=generator).requires_grad_()
    offset = torch.randn(11, dtype=dtype, generator=generator).requires_grad_() if bias else None
    labels = torch.randint(0, 11, (2, 9), generator=generator)
    labels[torch.rand(2, 9, generator=generator) < 0.4] = IGNORED
    return hidden, Head(weight, offset, scale, softcap), labels


def full_cross_entropy(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> torch.Tensor:
    logits = F.linear(hidden, head.weight, head.bias) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
@pytest.mark.parametrize("chunk_rows", [1, 4, 1024])
def test_equals_full_cross_entropy(bias: bool, scale: float, softcap: float | None, chunk_rows: int) -> None:
    hidden, head, labels = case(torch.float64, bias, scale, softcap)
    inputs = [item for item in (hidden, head.weight, head.bias) if item is not None]
    ours = sft_loss(hidden, head, labels, chunk_rows=chunk_rows)
    theirs = full_cross_entropy(hidden, head, labels)
    torch.testing.assert_close(ours.loss_sum, theirs, rtol=1e-12, atol=0)
    for mine, reference in zip(
        torch.autograd.grad(ours.loss_sum * 3, inputs), torch.autograd.grad(theirs * 3, inputs), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)
    best = head_logits(hidden, head)[:, :-1].argmax(-1)
    assert ours.n_labels == int((labels[:, 1:] != IGNORED).sum())
    assert int(ours.metrics["correct"]) == int((best == labels[:, 1:]).sum())


@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
def test_gradients_by_finite_differences(bias: bool, scale: float, softcap: float | None) -> None:
    hidden, head, labels = case(torch.float64, bias, scale, softcap)

    def loss(h: torch.Tensor, w: torch.Tensor, *b: torch.Tensor) -> torch.Tensor:
        return sft_loss(h, Head(w, b[0] if b else None, scale, softcap), labels, chunk_rows=3).loss_sum

    assert torch.autograd.gradcheck(
        loss, [item for item in (hidden, head.weight, head.bias) if item is not None]
    )


def test_large_logits_stay_finite() -> None:
    hidden = torch.full((1, 3, 4), 1e3, requires_grad=True)
    head = Head(torch.tensor([[1e3] * 4, [-1e3] * 4]))
    result = sft_loss(hidden, head, torch.tensor([[IGNORED, 0, 1]]))
    assert result.loss_sum.item() == pytest.approx(8e6)
    result.loss_sum.backward()
    assert torch.isfinite(hidden.grad).all()  # type: ignore[arg-type]


def test_without_labels_and_without_gradients() -> None:
    hidden, head, labels = case(torch.float32, False, 1.0, None)
    nothing = sft_loss(hidden, head, torch.full_like(labels, IGNORED))
    assert (nothing.loss_sum.item(), nothing.n_labels) == (0.0, 0)
    nothing.loss_sum.backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()
    with torch.no_grad():
        assert not sft_loss(hidden, head, labels).loss_sum.requires_grad


def test_bfloat16_gradient_keeps_its_type() -> None:
    hidden, head, labels = case(torch.bfloat16, True, 1.0, None)
    result = sft_loss(hidden, head, labels)
    assert result.loss_sum.dtype == torch.float32
    result.loss_sum.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    reference = full_cross_entropy(
        hidden.detach().float(), Head(head.weight.float(), head.bias.float()), labels
    )  # type: ignore[union-attr]
    assert result.loss_sum.item() == pytest.approx(reference.item(), rel=0.02)


def test_peak_memory_does_not_grow_with_the_sequence() -> None:
    """8,192 targets x 8,192 words are 268 MB of fp32 logits, and as much again of gradient."""
    script = (
        "import resource, torch; from scaler_wizard.losses.sft import Head, sft_loss\n"
        "torch.set_num_threads(1)\n"
        "hidden = torch.randn(1, 8192, 8, requires_grad=True); weight = torch.randn(8192, 8)\n"
        "labels = torch.randint(0, 8192, (1, 8192))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "sft_loss(hidden, Head(weight), labels, chunk_rows=64).loss_sum.backward()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(output) < 60_000, "kilobytes"


def test_registry_names_the_objective() -> None:
    assert LOSSES["sft"] is sft_loss
