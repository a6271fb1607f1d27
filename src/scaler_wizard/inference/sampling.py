"""Choosing the next token of every row at once. Knows logits; knows no model and no cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def choose_tokens(logits_BV: Tensor, temperatures: Sequence[float], uniforms: Sequence[float]) -> list[int]:
    """The next token of each row: the most likely one where the temperature is 0, else a sample.

    A sample inverts the cumulative distribution at one uniform number per row, so that each row needs one
    draw from a generator of its own however large the vocabulary, and all rows are sampled together. The
    sum is kept in float64: in float32 the tail of a vocabulary of 150,000 tokens would be cut off.

    uniforms: in [0, 1), one per row; those of greedy rows are not used.
    """
    greedy_B = logits_BV.argmax(1)
    sampled = [row for row, temperature in enumerate(temperatures) if temperature > 0]
    if sampled:
        device = logits_BV.device
        rows_S = torch.tensor(sampled, device=device)
        scale_S = torch.tensor([temperatures[row] for row in sampled], device=device)
        draw_S = torch.tensor([uniforms[row] for row in sampled], device=device, dtype=torch.float64)
        logits_SV = logits_BV[rows_S].float() / scale_S[:, None]
        cumulative_SV = logits_SV.softmax(1).cumsum(1, dtype=torch.float64)
        # The first token whose cumulative probability exceeds the draw: never one of probability 0.
        targets_S1 = (draw_S * cumulative_SV[:, -1])[:, None]
        chosen_S1 = torch.searchsorted(cumulative_SV, targets_S1, right=True)
        greedy_B[rows_S] = chosen_S1[:, 0].clamp(max=logits_BV.shape[1] - 1)
    return [int(token) for token in greedy_B.tolist()]
