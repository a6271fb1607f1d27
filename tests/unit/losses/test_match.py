"""Hidden-state matching and attention transfer: gradients, zero points, packing."""

from __future__ import annotations

import pytest
import torch

from scaler_wizard.losses.match import (
    MAX_ATTENTION_TOKENS,
    attention_transfer_loss,
    hidden_match_loss,
    initial_projection,
    unit_rms,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention(heads: int, lengths: tuple[int, ...], seed: int) -> torch.Tensor:
    """Causal attention [1, heads, T, T] within each segment."""
    total = sum(lengths)
    segment = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    allowed = (segment[:, None] == segment[None]) & torch.ones(total, total, dtype=torch.bool).tril()
    return draw(1, heads, total, total, seed=seed).masked_fill(~allowed, -torch.inf).softmax(-1)


def test_gradients_by_finite_differences() -> None:
    student, teacher = draw(6, 4).requires_grad_(), draw(6, 3, seed=1)
    projection = draw(3, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, p: hidden_match_loss(s, teacher, p).loss_sum, [student, projection]
    )
    scores = draw(1, 2, 5, 5, seed=3).requires_grad_()
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    theirs = attention(3, (5,), 4)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return attention_transfer_loss(values.masked_fill(~causal, -torch.inf).softmax(-1), theirs).loss_sum

    assert torch.autograd.gradcheck(loss, [scores])


def test_hidden_error_is_one_for_nothing_and_zero_for_the_teacher() -> None:
    student, mix = draw(50, 8), draw(3, 8, seed=1)
    teacher = student @ mix.T
    assert hidden_match_loss(student, teacher, torch.zeros(3, 8)).loss_sum.item() == pytest.approx(50)
    rms = teacher.square().mean(-1, keepdim=True).sqrt()
    assert hidden_match_loss(student / rms, teacher, mix).loss_sum.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(unit_rms(teacher * 100), unit_rms(teacher))


def test_a_projection_can_be_learned() -> None:
    student, teacher = draw(200, 8).float(), (draw(200, 8) @ draw(8, 3, seed=1)).float()
    projection = initial_projection(8, 3, seed=0).requires_grad_()
    optimizer = torch.optim.Adam([projection], lr=0.05)
    errors = []
    for _ in range(60):
        found = hidden_match_loss(student, teacher, projection)
        optimizer.zero_grad()
        found.loss_sum.backward()
        optimizer.step()
        errors.append(found.loss_sum.item() / found.n_labels)
    assert errors[-1] < 0.3 * errors[0]


def test_initial_projection() -> None:
    torch.testing.assert_close(initial_projection(4, 4, 0), torch.eye(4))
    wide = initial_projection(4, 7, 0)
    torch.testing.assert_close(wide.T @ wide, torch.eye(4))
    assert torch.equal(wide, initial_projection(4, 7, 0))


def test_attention_of_the_teacher_itself_is_no_loss() -> None:
    theirs = attention(3, (6,), 0)
    found = attention_transfer_loss(theirs, theirs[:, [2, 0, 1]])
    assert found.loss_sum.item() == pytest.approx(0, abs=1e-12)
    assert found.n_labels == 5
    assert attention_transfer_loss(attention(2, (6,), 1), theirs).loss_sum.item() > 0.1


def test_packed_segments_equal_their_sum() -> None:
    lengths = (4, 3)
    ours, theirs = attention(2, lengths, 1), attention(3, lengths, 2)
    packed = attention_transfer_loss(ours, theirs, lengths)
    alone = [
        attention_transfer_loss(ours[..., part, part], theirs[..., part, part])
        for part in (slice(0, 4), slice(4, 7))
    ]
    assert packed.loss_sum.item() == pytest.approx(sum(item.loss_sum.item() for item in alone))
    assert packed.n_labels == sum(item.n_labels for item in alone) == 5


def test_attention_maps_of_long_sequences_are_a_programming_error() -> None:
    size = MAX_ATTENTION_TOKENS + 1
    maps = torch.empty(1, 1, size, size)
    with pytest.raises(AssertionError, match="short sequences"):
        attention_transfer_loss(maps, maps)
