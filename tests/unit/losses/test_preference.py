"""DPO, ORPO and the log-probabilities under them: finite differences, known answers, packing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler_wizard.losses.dpo import dpo_loss
from scaler_wizard.losses.log_probs import PairScores, pair_scores, sequence_log_probs
from scaler_wizard.losses.orpo import log_odds, orpo_loss
from scaler_wizard.losses.registry import PREFERENCE_LOSSES
from scaler_wizard.losses.sft import IGNORED, Head, head_logits

LENGTHS = (5, 3, 6, 4)


def packed(seed: int = 0) -> tuple[torch.Tensor, Head, torch.Tensor]:
    """Four segments on one axis: hidden [1, 18, 5], head, labels [1, 18]."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(LENGTHS)
    hidden = torch.randn(1, total, 5, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(11, 5, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(0, 11, (1, total), generator=generator)
    start = 0
    for length in LENGTHS:
        labels[0, start : start + length // 2] = IGNORED
        start += length
    return hidden, Head(weight, None, 0.5, 3.0), labels


def scores(
    policy: list[list[float]], reference: list[list[float]] | None = None, tokens: int = 4
) -> PairScores:
    given_ = None if reference is None else torch.tensor(reference, dtype=torch.float64)
    values = torch.tensor(policy, dtype=torch.float64)
    return PairScores(values, torch.full(values.shape, tokens), given_)


def test_sequence_log_probs_by_definition() -> None:
    hidden, head, labels = packed()
    found = sequence_log_probs(hidden, head, labels, LENGTHS, chunk_rows=3)
    start = 0
    for number, length in enumerate(LENGTHS):
        logits = head_logits(hidden[0, start : start + length - 1], head)
        at = labels[0, start + 1 : start + length]
        loss = F.cross_entropy(logits, at, ignore_index=IGNORED, reduction="sum")
        assert found.log_probs[number].item() == pytest.approx(-loss.item(), rel=1e-12)
        assert found.n_targets[number].item() == int((at != IGNORED).sum())
        start += length


def test_packed_and_padded_sequences_agree() -> None:
    hidden, head, labels = packed()
    width = max(LENGTHS)
    rows, marks, start = [], [], 0
    for length in LENGTHS:
        part = slice(start, start + length)
        rows.append(F.pad(hidden[0, part], (0, 0, 0, width - length), value=7.0))
        marks.append(F.pad(labels[0, part], (0, width - length), value=IGNORED))
        start += length
    one = sequence_log_probs(hidden, head, labels, LENGTHS)
    other = sequence_log_probs(torch.stack(rows), head, torch.stack(marks))
    torch.testing.assert_close(one.log_probs, other.log_probs, rtol=1e-12, atol=0)
    assert torch.equal(one.n_targets, other.n_targets)


@pytest.mark.parametrize("name", ["dpo", "dpo smoothed with sft", "orpo"])
def test_gradients_by_finite_differences(name: str) -> None:
    hidden, head, labels = packed()
    reference = torch.tensor([-4.0, -3.0, -5.0, -2.0], dtype=torch.float64)

    def loss(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        found = pair_scores(
            sequence_log_probs(h, head._replace(weight=w), labels, LENGTHS, chunk_rows=2), reference
        )
        if name == "orpo":
            return orpo_loss(found, beta=0.7).loss_sum
        extra = {} if name == "dpo" else {"label_smoothing": 0.2, "sft_weight": 0.3}
        return dpo_loss(found, beta=0.5, **extra).loss_sum

    assert torch.autograd.gradcheck(loss, [hidden, head.weight])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_dpo_of_the_reference_itself_is_ln_2(label_smoothing: float) -> None:
    same = [[-3.0, -9.0], [-1.0, -0.5]]
    found = dpo_loss(scores(same, same), beta=0.1, label_smoothing=label_smoothing)
    assert found.loss_sum.item() / found.n_labels == pytest.approx(math.log(2), rel=1e-12)
    assert found.metrics["reward_margin"].item() == 0
    assert found.metrics["reward_accuracy"].item() == 0


def test_dpo_by_hand() -> None:
    found = dpo_loss(scores([[-3.0, -9.0]], [[-4.0, -7.0]]), beta=0.5, label_smoothing=0.1, sft_weight=2.0)
    margin = 0.5 * (1.0 + 2.0)
    expected = 0.9 * math.log1p(math.exp(-margin)) + 0.1 * math.log1p(math.exp(margin)) + 2.0 * 3.0 / 4
    assert found.loss_sum.item() == pytest.approx(expected, rel=1e-12)
    values = {name: value.item() for name, value in found.metrics.items()}
    assert values == pytest.approx(
        {"reward_margin": 1.5, "reward_accuracy": 1, "chosen_reward": 0.5, "rejected_reward": -1.0,
         "chosen_nll": 0.75}
    )  # fmt: skip


def test_the_reference_gets_no_gradient() -> None:
    hidden, head, labels = packed()
    own = sequence_log_probs(hidden, head, labels, LENGTHS)
    found = pair_scores(own, own.log_probs)
    assert found.reference is not None
    assert not found.reference.requires_grad
    dpo_loss(found).loss_sum.backward()
    assert hidden.grad is not None
    assert hidden.grad.any(), "the first step already moves the policy"


def test_a_torn_pair_is_a_programming_error() -> None:
    hidden, head, labels = packed()
    with pytest.raises(AssertionError, match="torn apart"):
        pair_scores(sequence_log_probs(hidden[:, :14], head, labels[:, :14], LENGTHS[:3]))


@settings(max_examples=60, deadline=None)
@given(better=st.floats(-8, 8), worse=st.floats(-8, 8))
def test_dpo_falls_as_the_margin_rises(better: float, worse: float) -> None:
    low, high = sorted((better, worse))
    losses = [dpo_loss(scores([[margin, 0.0]], [[0.0, 0.0]])).loss_sum.item() for margin in (low, high)]
    assert losses[0] >= losses[1]


def test_log_odds_is_stable() -> None:
    p = torch.tensor([1e-30, 0.3, 0.5, 0.5001, 0.999], dtype=torch.float64)
    torch.testing.assert_close(log_odds(p.log()), (p / (1 - p)).log(), rtol=1e-9, atol=1e-12)
    edge = torch.tensor([0.0, -1e-9, -90.0], requires_grad=True)
    log_odds(edge).sum().backward()
    assert edge.grad is not None
    assert torch.isfinite(edge.grad).all()


def test_orpo_by_hand() -> None:
    """Mean probabilities 0.8 and 0.2 per token: odds 4 and 1/4, log odds ratio ln 16."""
    pair = [[3 * math.log(0.8), 3 * math.log(0.2)]]
    found = orpo_loss(scores(pair, tokens=3), beta=0.25)
    expected = -math.log(0.8) + 0.25 * math.log1p(1 / 16)
    assert found.loss_sum.item() == pytest.approx(expected, rel=1e-12)
    assert found.metrics["log_odds_ratio"].item() == pytest.approx(math.log(16))
    assert found.metrics["reward_accuracy"].item() == 1
    other = orpo_loss(scores(pair, tokens=3), beta=0.25, chosen_nll=torch.tensor([5.0], dtype=torch.float64))
    assert other.loss_sum.item() == pytest.approx(expected + math.log(0.8) + 5.0)


def test_registry_names_the_objectives() -> None:
    assert PREFERENCE_LOSSES["dpo"] is dpo_loss
    assert PREFERENCE_LOSSES["orpo"] is orpo_loss
