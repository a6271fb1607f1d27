"""Loss of held-out text: the same targets under two context windows, by position, and within the base window.

The targets are the last tokens of each document. They are scored once with the last `base_length` tokens as
context and once with the whole `length`, by the same model, so that the difference is what the added context
is worth (below 0) or costs (above 0), paired by document. All losses are nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from torch import nn

from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.evals.documents import last_window, prefix_ids, windows
from scaler_wizard.evals.results import NllResult, PositionBin, ShortNllResult
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.statistics import Interval, MeanEstimate, mean_estimate, paired_difference
from scaler_wizard.evals.tokenizing import Tokenizer
from scaler_wizard.inference.modes import vocabulary_size
from scaler_wizard.inference.scoring import score_positions, score_targets


def perplexity(estimate: MeanEstimate) -> tuple[float, Interval]:
    """exp of a mean NLL and of its interval's ends."""
    low, high = estimate.ci95
    return _exp(estimate.mean), (_exp(low), _exp(high))


def _exp(value: float) -> float:
    # A broken model's loss may overflow; its perplexity is then infinite, not an error.
    return math.exp(value) if value < 700 else math.inf if value >= 700 else math.nan


def base_window_losses(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    settings: ProbeSettings,
    on_progress: OnProgress = no_progress,
) -> list[list[float]]:
    """Losses of the targets of every document with only the last `base_length` tokens as context.

    [documents][target_tokens]. Measure it on the unchanged model to get a reference for `same_target_nll`.
    """
    rows = windows(tokenizer, documents, settings.length, settings)
    return _base_losses(model, rows, prefix_ids(tokenizer), settings, on_progress)


def _base_losses(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    prefix: Sequence[int],
    settings: ProbeSettings,
    on_progress: OnProgress,
) -> list[list[float]]:
    short = [last_window(row, settings.base_length, prefix) for row in rows]
    starts = [len(row) - settings.target_tokens for row in short]
    scores = score_targets(model, short, starts, on_progress=on_progress)
    return [[-value for value in row] for row in scores]


def same_target_nll(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    settings: ProbeSettings,
    on_progress: OnProgress = no_progress,
    *,
    reference: Sequence[Sequence[float]] | None = None,
) -> NllResult:
    """Paired NLL difference of the same targets: whole length minus base window.

    reference: `base_window_losses` of the unchanged model on the same documents and settings. When None, this
    model's own: right for asking what context is worth to one model, wrong for choosing between methods,
    because a change that raises the loss at every length cancels out.
    """
    rows = windows(tokenizer, documents, settings.length, settings)
    prefix = prefix_ids(tokenizer)
    if reference is None:
        reference = _base_losses(model, rows, prefix, settings, no_progress)
    assert len(reference) == len(rows)
    positions = _positions(len(prefix), settings.length - settings.target_tokens, settings)
    scores = score_positions(model, rows, [positions] * len(rows), on_progress=on_progress)
    losses = [[-value for value in score.logprobs] for score in scores]
    targets = [row[-settings.target_tokens :] for row in losses]
    recent = max(1, settings.target_tokens // 4)
    per_document, base = [fmean(row) for row in targets], [fmean(row) for row in reference]
    difference = paired_difference(per_document, base)
    ppl, ppl_ci95 = perplexity(mean_estimate(per_document))
    return NllResult(
        value=difference.mean,
        n=len(rows),
        ci95=difference.ci95,
        baseline=fmean(base),
        chance=math.log(vocabulary_size(model)),
        seed=settings.seed,
        length=settings.length,
        base_length=settings.base_length,
        difference=difference,
        recent_difference=paired_difference(
            [fmean(row[-recent:]) for row in targets], [fmean(row[-recent:]) for row in reference]
        ),
        nll=fmean(per_document),
        perplexity=ppl,
        perplexity_ci95=ppl_ci95,
        by_position=_by_position(positions, losses, settings),
        per_document=tuple(per_document),
        per_document_base=tuple(base),
    )


def _positions(first: int, target_start: int, settings: ProbeSettings) -> list[int]:
    """All targets, and evenly spaced positions before them within the settings' budget."""
    first = max(1, first)
    free = max(0, settings.positions_per_document - settings.target_tokens)
    step = max(1, math.ceil((target_start - first) / max(1, free)))
    return [*range(first, target_start, step), *range(target_start, settings.length)]


def _by_position(
    positions: Sequence[int], losses: Sequence[Sequence[float]], settings: ProbeSettings
) -> tuple[PositionBin, ...]:
    width = math.ceil(settings.length / settings.position_bins)
    bins: dict[int, list[float]] = {}
    for index, position in enumerate(positions):
        bins.setdefault(position // width, []).extend(row[index] for row in losses)
    return tuple(
        PositionBin(b * width, min((b + 1) * width, settings.length), fmean(values), len(values))
        for b, values in sorted(bins.items())
    )


def short_context_nll(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    settings: ProbeSettings,
    on_progress: OnProgress = no_progress,
) -> ShortNllResult:
    """Mean NLL of all tokens of windows of `base_length`: what the model could do before it was extended.

    baseline: none by itself; the caller compares with the same probe before the change.
    """
    rows = windows(tokenizer, documents, settings.base_length, settings)
    first = max(1, len(prefix_ids(tokenizer)))
    scores = score_targets(model, rows, [first] * len(rows), on_progress=on_progress)
    per_document = [-fmean(row) for row in scores]
    estimate = mean_estimate(per_document)
    ppl, ppl_ci95 = perplexity(estimate)
    return ShortNllResult(
        value=estimate.mean,
        n=len(rows),
        ci95=estimate.ci95,
        baseline=None,
        chance=math.log(vocabulary_size(model)),
        seed=settings.seed,
        length=settings.base_length,
        perplexity=ppl,
        perplexity_ci95=ppl_ci95,
        per_document=tuple(per_document),
    )
