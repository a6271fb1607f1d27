"""Log-probabilities of given tokens: batched by length, prefilled in chunks, logits only where asked.

Knows a causal language model by its `forward` (plain or PEFT); knows nothing of tokenizers or probes.
Rows are padded on the right, where causal attention never looks, so that no attention mask is needed and
every position counts from 0 as in training.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.inference.modes import (
    InferenceLimits,
    current_limits,
    device_of,
    measuring,
    needs_whole_rows,
    reset_rotary,
    vocabulary_size,
)

# Rows share a batch when the shortest is at least this share of the longest: at most a fifth is padding.
MIN_FILL = 0.8


@dataclass(frozen=True, slots=True)
class TargetScores:
    """What the model says at the wanted positions of one sequence."""

    logprobs: tuple[float, ...]
    """Log-probability (nats) of the token at each position given all before it."""
    predicted: tuple[int, ...]
    """Most likely token at each position: over the full vocabulary, or over the candidates."""


@dataclass(frozen=True, slots=True)
class _Row:
    index: int
    tokens: Sequence[int]
    wanted: Sequence[int]

    @property
    def length(self) -> int:
        """Tokens fed to the model: the last wanted token is predicted, not read."""
        return self.wanted[-1]


def score_targets(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    target_start: Sequence[int],
    *,
    limits: InferenceLimits | None = None,
    on_progress: OnProgress = no_progress,
) -> list[list[float]]:
    """Log-probabilities (nats) of tokens `target_start[i]:` of every sequence given all before."""
    positions = [range(start, len(row)) for row, start in zip(sequences, target_start, strict=True)]
    scores = score_positions(model, sequences, positions, limits=limits, on_progress=on_progress)
    return [list(score.logprobs) for score in scores]


def score_positions(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    *,
    candidates: Sequence[int] | None = None,
    limits: InferenceLimits | None = None,
    on_progress: OnProgress = no_progress,
) -> list[TargetScores]:
    """Score chosen tokens of every sequence, teacher-forced.

    sequences: token ids, any lengths.
    positions: for each sequence the rising positions (at least 1) of the tokens to score; may be empty.
    candidates: token ids that `predicted` is restricted to; the full vocabulary when None.

    The result depends neither on the batch composition nor on `limits` (fp32: below 1e-4).
    """
    limits = limits or current_limits()
    results = [TargetScores((), ())] * len(sequences)
    rows = [
        _Row(index, tokens, wanted)
        for index, (tokens, wanted) in enumerate(zip(sequences, positions, strict=True))
        if len(wanted)
    ]
    assert all(row.wanted[0] >= 1 and row.wanted[-1] < len(row.tokens) for row in rows)
    whole = needs_whole_rows(model)
    done = len(sequences) - len(rows)
    with measuring(model):
        for batch in _batches(rows, whole, limits):
            for row, scores in zip(batch, _score_batch(model, batch, whole, candidates, limits), strict=True):
                results[row.index] = scores
            done += len(batch)
            on_progress(done, len(sequences))
    return results


def _batches(rows: Sequence[_Row], whole: bool, limits: InferenceLimits) -> list[list[_Row]]:
    """Rows by falling length (the largest batch first: what does not fit in memory shows at once)."""
    batches: list[list[_Row]] = []
    for row in sorted(rows, key=lambda row: (-row.length, row.index)):
        longest = batches[-1][0].length if batches else 0
        shortest = longest if whole else MIN_FILL * longest
        fits = batches and (len(batches[-1]) + 1) * longest <= limits.batch_tokens
        if fits and row.length >= shortest:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _score_batch(
    model: nn.Module,
    batch: Sequence[_Row],
    whole: bool,
    candidates: Sequence[int] | None,
    limits: InferenceLimits,
) -> list[TargetScores]:
    device, width = device_of(model), batch[0].length
    padded = [[*row.tokens[: row.length], *[0] * (width - row.length)] for row in batch]
    tokens_BT = torch.tensor(padded, dtype=torch.long, device=device)
    # The logits at position p - 1 predict the token at position p.
    sources = sorted({position - 1 for row in batch for position in row.wanted})
    most = max(1, limits.logit_elements // (vocabulary_size(model) * len(batch)))
    logprobs: list[list[float]] = [[] for _ in batch]
    predicted: list[list[int]] = [[] for _ in batch]
    cache: Any = None
    plan: list[tuple[int, int, Sequence[int]]]
    if whole:
        plan = [(0, width, sources[i : i + most]) for i in range(0, len(sources), most)]
    else:
        plan = _chunks(width, sources, limits.chunk_for(device), most)
    for start, end, kept in plan:
        if whole:
            reset_rotary(model)
        keep = torch.tensor([source - start for source in kept], dtype=torch.long, device=device)
        output = model(
            input_ids=tokens_BT[:, start:end],
            past_key_values=cache,
            use_cache=not whole and len(plan) > 1,
            logits_to_keep=keep,
        )
        cache = None if whole else output.past_key_values
        if kept:
            _collect(output.logits, batch, kept, candidates, logprobs, predicted)
    return [TargetScores(tuple(found), tuple(best)) for found, best in zip(logprobs, predicted, strict=True)]


def _chunks(width: int, sources: Sequence[int], size: int, most: int) -> list[tuple[int, int, Sequence[int]]]:
    """Cut 0..width into pieces of at most `size` tokens holding at most `most` wanted positions each."""
    plan: list[tuple[int, int, Sequence[int]]] = []
    start = 0
    while start < width:
        first = bisect_left(sources, start)
        end = min(start + size, width)
        if first + most < len(sources):
            end = min(end, sources[first + most])
        plan.append((start, end, sources[first : bisect_left(sources, end)]))
        start = end
    return plan


def _collect(
    logits_BKV: Tensor,
    batch: Sequence[_Row],
    kept: Sequence[int],
    candidates: Sequence[int] | None,
    logprobs: list[list[float]],
    predicted: list[list[int]],
) -> None:
    """Append the scores found in one piece's logits to each row's lists."""
    place = {source: k for k, source in enumerate(kept)}
    picks = [
        (b, place[position - 1], row.tokens[position])
        for b, row in enumerate(batch)
        for position in row.wanted
        if position - 1 in place
    ]
    b_N, k_N, target_N = torch.tensor(picks, dtype=torch.long, device=logits_BKV.device).T
    logits_NV = logits_BKV[b_N, k_N].float()
    logprob_N = logits_NV.gather(1, target_N[:, None])[:, 0] - logits_NV.logsumexp(1)
    if candidates is None:
        best_N = logits_NV.argmax(1)
    else:
        allowed = torch.tensor(candidates, dtype=torch.long, device=logits_NV.device)
        best_N = allowed[logits_NV[:, allowed].argmax(1)]
    for (b, _, _), logprob, best in zip(picks, logprob_N.tolist(), best_N.tolist(), strict=True):
        logprobs[b].append(logprob)
        predicted[b].append(best)
