"""Causal attention on a CPU as plain matrix products over blocks of queries, forward and backward.

Torch's CPU kernel reaches a fifth of the matrix rate on heads of 64 and a tenth in its backward pass. Here
the query heads that share a key head stand under each other, so that every product is one wide matrix
product, and a block's scores are all there is of the score matrix. Knows neither modules nor packing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Measured on heads of 64 with 3 query heads a key head: blocks of 64 or 256 queries are no faster.
BLOCK_QUERIES = 128
# Scores of one block, 16 MB in fp32: long rows take fewer queries at a time instead of more memory.
MOST_SCORES = 1 << 22
# Below, Python's share of a block is larger than what the products save.
SHORTEST = 64
# Products this small do not feed more cores; torch's kernel shares out whole heads. Measured with 1 and 2.
MOST_THREADS = 4


def suits(query: Tensor, length: int) -> bool:
    """Whether this is the faster way for segments of `length` tokens of `query`, here and now."""
    return query.device.type == "cpu" and length >= SHORTEST and torch.get_num_threads() <= MOST_THREADS


class _Blocks:
    """The scores of one row's blocks, in buffers that every block of every key head uses again."""

    def __init__(self, group: int, length: int, dtype: torch.dtype) -> None:
        """`group` query heads a key head, rows of `length`; probabilities are handed out in `dtype`."""
        self.group, self.length = group, length
        self.size = max(1, min(BLOCK_QUERIES, length, MOST_SCORES // (group * length)))
        wide = torch.promote_types(dtype, torch.float32)
        self._scores = torch.empty(group * self.size * length, dtype=wide)
        self._narrow = None if dtype == wide else torch.empty_like(self._scores, dtype=dtype)
        self._slopes = torch.empty_like(self._scores, dtype=dtype)
        self._future = torch.full((self.size, self.size), -torch.inf, dtype=wide).triu_(1)

    def spans(self) -> Iterator[tuple[int, int]]:
        """First query of every block and the end of the keys it sees."""
        return ((start, min(self.length, start + self.size)) for start in range(0, self.length, self.size))

    def probabilities(self, query: Tensor, key: Tensor, start: int) -> Tensor:
        """softmax(q k^T) of scaled queries [group, n, d] from `start` on, keys [end, d]: [group * n, end].

        Scores and softmax in fp32 at least: scores of a trained model pass 20, where bfloat16 is off by 6%
        of a probability.
        """
        n_queries, end = query.shape[1], key.shape[0]
        rows = self.group * n_queries
        scores = self._scores[: rows * end].view(rows, end)
        torch.mm(query.reshape(rows, -1), key.T, out=scores)
        scores.view(self.group, n_queries, end)[:, :, start:].add_(self._future[:n_queries, :n_queries])
        torch.softmax(scores, -1, out=scores)
        if self._narrow is None:
            return scores
        return self._narrow[: rows * end].view(rows, end).copy_(scores)

    def slopes(self, d_out: Tensor, value: Tensor, probabilities: Tensor) -> Tensor:
        """Gradient of the scores, p (g - sum(p g)) with g = d_out v^T: [group * n, end]."""
        slopes = self._slopes[: probabilities.numel()].view_as(probabilities)
        torch.mm(d_out, value.T, out=slopes)
        torch.ops.aten._softmax_backward_data.out(
            slopes, probabilities, -1, probabilities.dtype, grad_input=slopes
        )
        return slopes


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        n_rows, heads, length, width = query.shape
        key_heads = key.shape[1]
        grouped = (n_rows, key_heads, heads // key_heads, length, width)
        blocks = _Blocks(heads // key_heads, length, query.dtype)
        q, k = _wide(query, scale).view(grouped), _wide(key)
        out = query.new_empty(n_rows, length, heads, value.shape[3])
        by_group = out.transpose(1, 2).view(*grouped[:4], -1)
        for row in range(n_rows):
            for head in range(key_heads):
                v = value[row, head]
                for start, end in blocks.spans():
                    p = blocks.probabilities(q[row, head, :, start:end], k[row, head, :end], start)
                    by_group[row, head, :, start:end] = (p @ v[:end]).view(-1, end - start, v.shape[1])
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.grouped = scale, grouped
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        n_rows, key_heads, group, length, width = ctx.grouped
        blocks = _Blocks(group, length, query.dtype)
        wide_q, wide_k = _wide(query, ctx.scale).view(ctx.grouped), _wide(key)
        q, d_outs = query.reshape(ctx.grouped), d_out.reshape(*ctx.grouped[:4], -1)
        # Laid out as the projections wrote them, so that nothing is turned round on the way back.
        d_query = torch.empty_like(query)
        by_group = d_query.view(ctx.grouped)
        d_key, d_value = torch.empty_like(key), torch.empty_like(value)
        for row in range(n_rows):
            for head in range(key_heads):
                k, v = key[row, head], value[row, head]
                # Summed over blocks, in fp32 at least.
                dk, dv = (torch.zeros_like(x, dtype=wide_q.dtype) for x in (k, v))
                for start, end in blocks.spans():
                    here = (row, head, slice(None), slice(start, end))
                    p = blocks.probabilities(wide_q[here], wide_k[row, head, :end], start)
                    g = d_outs[here].reshape(-1, v.shape[1])
                    dv[:end] += p.T @ g
                    ds = blocks.slopes(g, v[:end], p)
                    by_group[here] = (ds @ k[:end]).mul_(ctx.scale).view(group, -1, width)
                    dk[:end] += ds.T @ q[here].reshape(-1, width)
                d_key[row, head], d_value[row, head] = dk.mul_(ctx.scale), dv
        return d_query, d_key, d_value, None


def _wide(x: Tensor, scale: float = 1.0) -> Tensor:
    """x times `scale`, contiguous, in fp32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    return wide if scale == 1.0 else wide * scale


def blocked_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T + causal mask) v, exact (Vaswani 2017, equation 1), for rows of one length.

    Args:
        query: [N, heads, L, d]. key: [N, key-value heads, L, d]; heads share keys in order (GQA).
        value: [N, key-value heads, L, e].
        scale: 1 / sqrt(d) when None.

    Returns:
        [N, heads, L, e]. Peak memory beyond inputs and outputs is one block's scores, at most 32 MB.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out: Tensor = _BlockedAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return out
