"""Distillation: divergences of a student's next-token distribution from a teacher's, without all logits.

    forward  KL(p || q)                                  Hinton et al. 2015; covers all the teacher does
    reverse  KL(q || p)                                  Gu et al. 2024 (MiniLLM); does only what it does
    js       beta KL(p || m) + (1 - beta) KL(q || m),    m = beta p + (1 - beta) q
                                                         Agarwal et al. 2024 (GKD), eq. 1

p is the teacher's and q the student's softmax of logits / T. The loss is T^2 times the divergence: gradients
of softened distributions shrink by about 1 / T^2, and the factor keeps them comparable with those of
cross-entropy at any T (Hinton et al. 2015, section 2.1). Knows nothing of models, batches or caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor

from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.losses.chunked import linear_rows
from scaler_wizard.losses.sft import Head, LossResult, head_logits

DivergenceKind = Literal["forward", "reverse", "js"]


class Divergence(NamedTuple):
    """Which divergence, and how softened."""

    kind: DivergenceKind = "forward"
    temperature: float = 1.0
    """T: both softmaxes are of logits / T, and the loss is multiplied by T^2."""
    beta: float = 0.5
    """Weight of the teacher in js, between 0 and 1 (exclusive)."""


class TopK(NamedTuple):
    """What is kept of a teacher's distribution at N positions: its k likeliest tokens, the rest as one."""

    tokens: Tensor
    """Token ids [N, k], int64, no id twice in a row."""
    log_probs: Tensor
    """Their log-probabilities at T = 1 [N, k]."""
    tail: Tensor
    """Log of the probability of all other tokens together [N]; unused when k is the whole vocabulary."""


TeacherLogits = Callable[[int, int], Tensor]
"""(start, end) -> the teacher's logits of these rows [end - start, V]."""


def common_vocabulary(student_rows: int, teacher_rows: int, n_tokens: int) -> int:
    """Tokens that both models predict: within a family, heads differ only in rows that pad the matrix.

    Args:
        student_rows, teacher_rows: rows of the two heads.
        n_tokens: tokens of the tokenizer that both share.

    Raises:
        IncompatibleModelError: one of the heads lacks a token.
    """
    common = min(student_rows, teacher_rows)
    if common < n_tokens:
        smaller = "student" if student_rows < teacher_rows else "teacher"
        raise IncompatibleModelError(
            f"the {smaller}'s head has {common:,} rows for a tokenizer of {n_tokens:,} tokens",
            "a teacher of the student's family, with the same tokenizer",
            "choose another teacher in scaling.distillation",
        )
    return common


def sliced(head: Head, n_tokens: int) -> Head:
    """The head over the first `n_tokens` tokens of the vocabulary."""
    bias = None if head.bias is None else head.bias[:n_tokens]
    return head._replace(weight=head.weight[:n_tokens], bias=bias)


def teacher_from_hidden(hidden: Tensor, head: Head) -> TeacherLogits:
    """A teacher's logits by its final hidden states at the targets [N, H'] and its head, in chunks."""
    return lambda start, end: head_logits(hidden[start:end], head).detach()


def top_k(logits: Tensor, k: int) -> TopK:
    """The k likeliest tokens of logits [N, V] and the tail, whose mass is summed and not taken as 1 - sum."""
    log_probs = logits.log_softmax(dim=-1)
    best = log_probs.topk(k, dim=-1)
    tail = log_probs.scatter(1, best.indices, -torch.inf).logsumexp(dim=-1)
    return TopK(best.indices, best.values, tail)


def divergence_rows(log_p: Tensor, log_q: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """Divergence of each row [R] (without T^2), and its gradient by z [R, V], where log_q = log_softmax(z).

    Args:
        log_p: the teacher's log-probabilities [R, V]. log_q: the student's [R, V]. Both finite.
    """
    kind, _, beta = divergence
    if kind == "forward":
        p = log_p.exp()
        return (p * (log_p - log_q)).sum(-1), log_q.exp() - p
    q = log_q.exp()
    if kind == "reverse":
        ratio = log_q - log_p
        values = (q * ratio).sum(-1)
        return values, q * (ratio - values[:, None])
    if kind == "js":
        assert 0 < beta < 1, beta
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        ratio = log_q - log_m
        of_student = (q * ratio).sum(-1)
        values = beta * (log_p.exp() * (log_p - log_m)).sum(-1) + (1 - beta) * of_student
        # The terms through m cancel but for a constant, which the softmax removes.
        return values, (1 - beta) * q * (ratio - of_student[:, None])
    assert_never(kind)


def distillation_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    teacher: TopK | TeacherLogits,
    divergence: Divergence,
    *,
    weight: float = 1.0,
    chunk_rows: int | None = None,
) -> LossResult:
    """Sum over targets of: weight T^2 divergence(teacher, student) + (1 - weight) cross-entropy(target).

    Both terms come from one pass over the head. With a `TopK` teacher each side is first reduced, at T = 1,
    to its k tokens and one bucket for all others; the temperature is then applied to these k + 1 classes on
    both sides alike. So the cache does not depend on T, the loss is 0 exactly where the two reduced
    distributions agree, k = V is the full divergence, and within the tail the student is left alone (at T = 1
    the reduced divergence is a lower bound of the full one, by the data-processing inequality).

    Args:
        hidden: the student's final hidden states at the targets [N, H] (`chunked.at_targets`).
        head: the student's, sliced to the vocabulary that both share.
        targets: token ids [N].
        teacher: of the same N positions.
        chunk_rows: rows at a time; from the size of the vocabulary when None.

    Returns:
        the sum, N, and sums over targets of: divergence (at T, without T^2), cross_entropy, correct.
    """
    assert 0 <= weight <= 1, weight
    factor, reduce = weight * divergence.temperature**2, _reduction(teacher, head)
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    sums = torch.zeros(3, hidden.shape[0], dtype=accumulate, device=hidden.device)

    def row_loss(logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
        rows = slice(start, start + logits.shape[0])
        target = targets[rows, None]
        values, slope = reduce(logits, start, divergence)
        log_probs = logits.log_softmax(dim=-1)
        entropy = -log_probs.gather(1, target)[:, 0]
        sums[:, rows] = torch.stack([values, entropy, (log_probs.argmax(-1) == target[:, 0]).to(accumulate)])
        slope = slope * factor
        if weight < 1:
            slope += (1 - weight) * log_probs.exp()
            slope.scatter_add_(1, target, torch.full_like(target, weight - 1, dtype=slope.dtype))
        return factor * values + (1 - weight) * entropy, slope

    found = linear_rows(hidden, head, row_loss, chunk_rows=chunk_rows)
    totals = sums.sum(dim=1)
    names = ("divergence", "cross_entropy", "correct")
    return LossResult(found.sum(), hidden.shape[0], dict(zip(names, totals, strict=True)))


def divergences(hidden: Tensor, head: Head, teacher: TopK | TeacherLogits, divergence: Divergence) -> Tensor:
    """Divergence at each of N positions [N], nats, without T^2; arguments as for `distillation_loss`."""
    reduce = _reduction(teacher, head)
    return linear_rows(hidden, head, lambda logits, start: reduce(logits, start, divergence))


_Reduce = Callable[[Tensor, int, Divergence], tuple[Tensor, Tensor]]
"""(student's logits [R, V], first row, divergence) -> (values [R], their gradient by the logits [R, V])."""


def _reduction(teacher: TopK | TeacherLogits, head: Head) -> _Reduce:
    return _top_k_rows(teacher, head.weight.shape[0]) if isinstance(teacher, TopK) else _full_rows(teacher)


def _full_rows(teacher: TeacherLogits) -> _Reduce:
    """Over the whole vocabulary; what the teacher's head has beyond the student's is left out."""

    def rows(logits: Tensor, start: int, divergence: Divergence) -> tuple[Tensor, Tensor]:
        theirs = teacher(start, start + logits.shape[0])[:, : logits.shape[1]].to(logits.dtype)
        temperature = divergence.temperature
        log_p, log_q = (theirs / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1)
        values, slope = divergence_rows(log_p, log_q, divergence)
        return values, slope / temperature

    return rows


def _top_k_rows(teacher: TopK, n_tokens: int) -> _Reduce:
    """Over the teacher's k tokens and one bucket for the rest; no bucket where k is the whole vocabulary."""
    has_tail = teacher.tokens.shape[1] < n_tokens

    def rows(logits: Tensor, start: int, divergence: Divergence) -> tuple[Tensor, Tensor]:
        at = slice(start, start + logits.shape[0])
        tokens, temperature = teacher.tokens[at], divergence.temperature
        theirs, mine = teacher.log_probs[at].to(logits.dtype), logits.gather(1, tokens)
        if has_tail:
            rest = logits.scatter(1, tokens, -torch.inf)
            tail = rest.logsumexp(dim=1, keepdim=True)
            theirs = torch.cat([theirs, teacher.tail[at, None].to(logits.dtype)], dim=1)
            mine = torch.cat([mine, tail], dim=1)
        log_p, log_q = (theirs / temperature).log_softmax(-1), (mine / temperature).log_softmax(-1)
        values, slope = divergence_rows(log_p, log_q, divergence)
        slope = slope / temperature
        if not has_tail:
            return values, torch.zeros_like(logits).scatter_(1, tokens, slope)
        # d logsumexp(rest) / d logits = softmax over the tail, which is 0 at the k tokens.
        full = (rest - tail).exp_().mul_(slope[:, -1:])
        return values, full.scatter_(1, tokens, slope[:, :-1])

    return rows
