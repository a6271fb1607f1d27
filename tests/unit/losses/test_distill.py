"""Divergences against finite differences, against TRL, and against cases whose answer is known."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.losses.distill import (
    Divergence,
    DivergenceKind,
    TopK,
    common_vocabulary,
    distillation_loss,
    sliced,
    teacher_from_hidden,
    top_k,
)
from scaler_wizard.losses.sft import Head, head_logits, sft_loss

KINDS = get_args(DivergenceKind)
N, V = 7, 11
SHARED = 9


def case(seed: int = 0) -> tuple[torch.Tensor, Head, torch.Tensor, torch.Tensor, Head]:
    """A student of width 5 and a teacher of width 6, both with bias, scale and softcap."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    hidden, targets = draw(N, 5).requires_grad_(), torch.randint(0, V, (N,), generator=generator)
    head = Head(draw(V, 5).requires_grad_(), draw(V).requires_grad_(), 0.5, 3.0)
    return hidden, head, targets, draw(N, 6), Head(draw(V, 6), draw(V), 2.0, 4.0)


def by_hand(p: torch.Tensor, q: torch.Tensor, kind: str, beta: float) -> float:
    """The definitions, summed over rows."""

    def kl(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a * (a / b).log()).sum())

    m = beta * p + (1 - beta) * q
    return {
        "forward": kl(p, q),
        "reverse": kl(q, p),
        "js": beta * kl(p, m) + (1 - beta) * kl(q, m),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [None, 3, V])
def test_gradients_by_finite_differences(kind: DivergenceKind, k: int | None) -> None:
    hidden, head, targets, teacher_hidden, teacher_head = case()
    teacher_logits = head_logits(teacher_hidden, teacher_head)
    teacher = teacher_from_hidden(teacher_hidden, teacher_head) if k is None else top_k(teacher_logits, k)

    def loss(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        divergence = Divergence(kind, 1.7, 0.3)
        mine = head._replace(weight=w, bias=b)
        return distillation_loss(h, mine, targets, teacher, divergence, weight=0.6, chunk_rows=3).loss_sum

    assert torch.autograd.gradcheck(loss, [hidden, head.weight, head.bias])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_values_by_definition(kind: DivergenceKind, temperature: float) -> None:
    hidden, head, targets, teacher_hidden, teacher_head = case()
    teacher = teacher_from_hidden(teacher_hidden, teacher_head)
    found = distillation_loss(hidden, head, targets, teacher, Divergence(kind, temperature, 0.3))
    p = (head_logits(teacher_hidden, teacher_head) / temperature).softmax(-1)
    q = (head_logits(hidden, head) / temperature).softmax(-1).detach()
    expected = by_hand(p, q, kind, 0.3)
    assert found.metrics["divergence"].item() == pytest.approx(expected, rel=1e-12)
    assert found.loss_sum.item() == pytest.approx(temperature**2 * expected, rel=1e-12)
    assert found.n_labels == N


@pytest.mark.filterwarnings("ignore")  # TRL warns of what is experimental
@pytest.mark.parametrize(("kind", "trl_beta"), [("forward", 0.0), ("reverse", 1.0), ("js", 0.3)])
def test_equals_trl(kind: DivergenceKind, trl_beta: float) -> None:
    """TRL leaves T^2 out; gradients by the hidden states agree all the same."""
    gkd = pytest.importorskip("trl.experimental.gkd", reason="the optional extra `bench` is not installed")
    hidden, head, targets, teacher_hidden, teacher_head = case()
    hidden, head = hidden.detach().float().requires_grad_(), Head(head.weight.detach().float())
    teacher_head = Head(teacher_head.weight.float())
    student_logits, teacher_logits = (
        head_logits(hidden, head), head_logits(teacher_hidden.float(), teacher_head)
    )  # fmt: skip
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        student_logits[None], teacher_logits[None], beta=trl_beta, temperature=2.0, reduction="sum"
    )
    teacher = teacher_from_hidden(teacher_hidden.float(), teacher_head)
    ours = distillation_loss(hidden, head, targets, teacher, Divergence(kind, 2.0, 0.3), chunk_rows=2)
    assert ours.loss_sum.item() == pytest.approx(4 * theirs.item(), rel=1e-5)
    (mine,) = torch.autograd.grad(ours.loss_sum, hidden)
    (reference,) = torch.autograd.grad(theirs, hidden)
    assert reference.abs().max() > 1e-3
    torch.testing.assert_close(mine, 4 * reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_squared_keeps_the_gradient(kind: DivergenceKind) -> None:
    """At high T the T^2 loss tends to half the squared distance of centred logits over V, whatever T is."""
    hidden, head, targets, teacher_hidden, teacher_head = case()
    teacher = teacher_from_hidden(teacher_hidden, teacher_head)
    losses = [
        distillation_loss(hidden, head, targets, teacher, Divergence(kind, t)).loss_sum.item()
        for t in (1e3, 2e3)
    ]
    distance = head_logits(hidden, head) - head_logits(teacher_hidden, teacher_head)
    distance = distance - distance.mean(-1, keepdim=True)
    limit = (distance.square().sum() / (2 * V)).item() * (0.25 if kind == "js" else 1.0)
    assert losses == pytest.approx([limit, limit], rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [None, 3])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(kind: DivergenceKind, k: int | None) -> None:
    hidden, head, targets, _, _ = case()
    logits = head_logits(hidden, head).detach()
    teacher = teacher_from_hidden(hidden.detach(), head) if k is None else top_k(logits, k)
    found = distillation_loss(hidden, head, targets, teacher, Divergence(kind, 2.0))
    found.loss_sum.backward()
    assert found.loss_sum.item() == pytest.approx(0, abs=1e-12)
    assert hidden.grad is not None
    assert hidden.grad.abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_of_the_whole_vocabulary_is_the_full_divergence(kind: DivergenceKind) -> None:
    hidden, head, targets, teacher_hidden, teacher_head = case()
    divergence = Divergence(kind, 1.7)
    full = distillation_loss(
        hidden, head, targets, teacher_from_hidden(teacher_hidden, teacher_head), divergence
    )
    kept = top_k(head_logits(teacher_hidden, teacher_head), V)
    reduced = distillation_loss(hidden, head, targets, kept, divergence, chunk_rows=2)
    torch.testing.assert_close(full.loss_sum, reduced.loss_sum, rtol=1e-12, atol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, V - 1), kind=st.sampled_from(KINDS))
def test_reducing_to_top_k_never_raises_the_divergence(seed: int, k: int, kind: DivergenceKind) -> None:
    """Data-processing inequality, and its sharper form: more classes, no smaller divergence."""
    hidden, head, targets, teacher_hidden, teacher_head = case(seed)
    logits = head_logits(teacher_hidden, teacher_head)
    values = [
        distillation_loss(hidden, head, targets, top_k(logits, size), Divergence(kind)).loss_sum.item()
        for size in (k, k + 1, V)
    ]
    assert -1e-12 <= values[0] <= values[1] + 1e-12 <= values[2] + 2e-12


def test_top_k_keeps_all_the_mass() -> None:
    logits = torch.randn(4, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kept = top_k(logits, 4)
    mass = kept.log_probs.exp().sum(-1) + kept.tail.exp()
    torch.testing.assert_close(mass, torch.ones(4, dtype=torch.float64))
    # 1 - sum would have been 0 here, and its logarithm infinite.
    sharp = top_k(torch.tensor([[0.0, -200.0, -300.0]]), 1)
    assert sharp.tail.item() == pytest.approx(-200.0)


def test_weight_zero_is_cross_entropy() -> None:
    hidden, head, targets, teacher_hidden, teacher_head = case()
    teacher = top_k(head_logits(teacher_hidden, teacher_head), 3)
    ours = distillation_loss(hidden, head, targets, teacher, Divergence("forward", 2.0), weight=0.0)
    # sft_loss shifts labels: a token before each target, alone in its row.
    labels = torch.stack([torch.full_like(targets, -100), targets], dim=1)
    padded = torch.stack([hidden, torch.zeros_like(hidden)], dim=1)
    theirs = sft_loss(padded, head, labels)
    torch.testing.assert_close(ours.loss_sum, theirs.loss_sum, rtol=1e-12, atol=0)
    assert int(ours.metrics["correct"]) == int(theirs.metrics["correct"])
    for mine, reference in zip(
        torch.autograd.grad(ours.loss_sum, [hidden, head.weight]),
        torch.autograd.grad(theirs.loss_sum, [hidden, head.weight]),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


def test_one_sure_teacher_is_a_label() -> None:
    """Forward KL to a teacher that is certain is the cross-entropy of its token: -log q."""
    hidden = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    head = Head(torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]], dtype=torch.float64))
    certain = TopK(torch.tensor([[1]]), torch.tensor([[-1e-13]]), torch.tensor([-30.0]))
    found = distillation_loss(hidden, head, torch.tensor([1]), certain, Divergence("forward"))
    assert found.loss_sum.item() == pytest.approx(math.log(4.0), rel=1e-9)


def test_padding_rows_of_a_head_are_sliced() -> None:
    hidden, head, targets, teacher_hidden, teacher_head = case()
    targets = targets % SHARED
    wide = distillation_loss(
        hidden, sliced(head, SHARED), targets, teacher_from_hidden(teacher_hidden, teacher_head), Divergence()
    )
    narrow = distillation_loss(
        hidden, Head(head.weight[:SHARED], head.bias[:SHARED], head.scale, head.softcap), targets,  # type: ignore[index]
        teacher_from_hidden(teacher_hidden, sliced(teacher_head, SHARED)), Divergence(),
    )  # fmt: skip
    torch.testing.assert_close(wide.loss_sum, narrow.loss_sum)
    wide.loss_sum.backward()
    assert head.weight.grad is not None
    assert head.weight.grad[:SHARED].any()
    assert not head.weight.grad[SHARED:].any()


def test_another_vocabulary_is_refused() -> None:
    assert common_vocabulary(151_936, 152_064, 151_669) == 151_936
    with pytest.raises(IncompatibleModelError, match=r"the teacher's head has 32,000 rows"):
        common_vocabulary(151_936, 32_000, 151_669)


def test_no_targets_is_no_loss() -> None:
    _, head, _, _, _ = case()
    nothing = torch.empty(0, 5, dtype=torch.float64, requires_grad=True)
    empty = top_k(torch.empty(0, V, dtype=torch.float64), 3)
    found = distillation_loss(nothing, head, torch.empty(0, dtype=torch.int64), empty, Divergence())
    found.loss_sum.backward()
    assert (found.loss_sum.item(), found.n_labels) == (0.0, 0)


def test_peak_memory_does_not_grow_with_the_sequence() -> None:
    """4,096 targets x 8,192 words are 134 MB of fp32 logits; a divergence would need several such."""
    script = (
        "import resource, torch; from scaler_wizard.losses.distill import *\n"
        "from scaler_wizard.losses.sft import Head\n"
        "torch.set_num_threads(1)\n"
        "hidden = torch.randn(4096, 8, requires_grad=True); weight = torch.randn(8192, 8)\n"
        "targets = torch.randint(0, 8192, (4096,))\n"
        "teacher = teacher_from_hidden(torch.randn(4096, 8), Head(torch.randn(8192, 8)))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "distillation_loss(hidden, Head(weight), targets, teacher, Divergence('js', 2.0), weight=0.5, "
        "chunk_rows=64).loss_sum.backward()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(output) < 100_000, "kilobytes"
