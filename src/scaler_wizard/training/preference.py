"""Preference training: the objective of pairs with anchors, and the reference it is held to.

The reference of DPO is the policy as it was before the first step. Its log-probabilities are one number per
answer, scored once and kept, so that no second model is ever in memory: with a fresh adapter that is the base
with the adapter off, and with full fine-tuning it cannot be a model that was loaded again from disk. Before
the first step the loss must be ln 2; `check_start` says so or stops. Knows no files and no recipes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scaler_wizard.data.batches import MicroBatch, pack
from scaler_wizard.data.pair_batches import PairMicroBatch, TokenPair, collate_pairs
from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.errors import CheckpointError, ReferenceMismatchError
from scaler_wizard.losses.dpo import dpo_loss
from scaler_wizard.losses.log_probs import PairScores, SequenceLogProbs, pair_scores, sequence_log_probs
from scaler_wizard.losses.orpo import orpo_loss
from scaler_wizard.losses.registry import PreferenceName
from scaler_wizard.losses.sft import LossResult
from scaler_wizard.training.forward import Objective, head_of, hidden_states, training_mode

LN_2 = math.log(2)
# By which share of an answer's log-probability policy and reference may differ at step 0: rows are packed in
# other company, which changes the rounding of matrix products.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class PreferenceSettings:
    """The objective."""

    method: PreferenceName = "dpo"
    beta: float = 0.1
    """DPO: nats of reward per nat of log-ratio. ORPO: weight of the odds-ratio term."""
    sft_weight: float = 0.2
    """DPO: weight of the chosen answer's mean loss per token. ORPO has that term by itself."""
    anchor_weight: float = 1.0
    """Weight of an anchor's mean loss per token."""
    label_smoothing: float = 0.0
    """DPO: share of pairs taken to be labelled the wrong way round."""

    @property
    def needs_reference(self) -> bool:
        """Whether the objective compares with the policy before training."""
        return self.method == "dpo"


@dataclass(frozen=True)
class Reference:
    """Log-probabilities of all pairs' answers under the policy before training."""

    log_probs: Tensor
    """[pairs, 2]: chosen, rejected; summed over the answer, nats, fp32."""
    digest: str
    """Of the pairs that were scored, see `pairs_digest`."""

    def of(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """The rows of some pairs, flat [2 n]."""
        return self.log_probs[list(numbers)].to(device).view(-1)


def pairs_digest(pairs: Sequence[TokenPair]) -> str:
    """SHA-256 of the pairs' tokens and marks."""
    digest = hashlib.sha256()
    for pair in pairs:
        for row in pair.rows:
            digest.update(len(row.ids).to_bytes(4, "little") + row.ids.tobytes() + row.trained.tobytes())
    return digest.hexdigest()


def score_reference(
    model: Any,
    pairs: Sequence[TokenPair],
    *,
    micro_batch_tokens: int,
    device: torch.device | str = "cpu",
    on_progress: OnProgress = no_progress,
) -> Reference:
    """Log-probabilities of all pairs under the model as it is now: the policy before its first step."""
    device = torch.device(device)
    lengths = [sum(len(row.ids) for row in pair.rows) for pair in pairs]
    found = torch.zeros(len(pairs), 2)
    done = 0
    for members in pack(lengths, max(micro_batch_tokens, *lengths)):
        micro = collate_pairs([(number, pairs[number]) for number in members])
        found[members] = _policy(model, micro.to(device)).cpu()
        done += len(members)
        on_progress(done, len(pairs))
    return Reference(found, pairs_digest(pairs))


def check_reference(reference: Reference, pairs: Sequence[TokenPair]) -> Reference:
    """The reference, if it is of these pairs.

    Raises:
        CheckpointError: it was scored on others.
    """
    if reference.digest != pairs_digest(pairs) or len(reference.log_probs) != len(pairs):
        raise CheckpointError(
            f"reference log-probabilities of {len(reference.log_probs):,} other pairs",
            f"those of these {len(pairs):,}",
            "roll back to before this phase; the pairs are then made again",
        )
    return reference


def check_start(
    model: Any,
    micro_batches: Sequence[MicroBatch],
    reference: Reference,
    *,
    beta: float,
    device: torch.device | str = "cpu",
) -> float:
    """The first DPO loss, which must be ln 2, with policy and reference equal answer by answer.

    Args:
        micro_batches: of the first step.

    Raises:
        ReferenceMismatchError: they differ by more than rounding: the reference is another model, or dropout
            makes the policy another model than itself.
    """
    device = torch.device(device)
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, TOLERANCE[torch.bfloat16])
    losses: list[float] = []
    worst = 0.0
    for micro in micro_batches:
        assert isinstance(micro, PairMicroBatch)
        if not micro.n_pairs:
            continue
        policy = _policy(model, micro.to(device)).view(-1)
        expected = reference.of(micro.numbers, device)
        worst = max(worst, float(((policy - expected).abs() / expected.abs().clamp(min=1)).max()))
        scores = PairScores(policy.view(-1, 2), torch.ones(micro.n_pairs, 2), expected.view(-1, 2))
        losses.append(dpo_loss(scores, beta=beta).loss_sum.item())
    first = math.fsum(losses) / sum(len(_numbers(micro)) for micro in micro_batches)
    if not (worst <= tolerance and abs(first - LN_2) <= max(1e-3, tolerance)):
        raise ReferenceMismatchError(
            f"the first DPO loss is {first:.4f}, and policy and reference differ by up to {worst:.2%} of an "
            "answer's log-probability before the first step",
            f"a loss of ln 2 = {LN_2:.4f} and equal log-probabilities: the reference is the policy before "
            "training",
            "score the reference with the model in memory, not with one loaded again, and set "
            "scaling.lora.dropout to 0",
        )
    return first


def preference_objective(settings: PreferenceSettings, reference: Reference | None = None) -> Objective:
    """Sum over pairs of the method's loss, and of the anchors' mean losses per token times their weight.

    `LossResult.n_labels` and a micro-batch's count pairs, so that a step's loss is a mean over its pairs.

    Metrics: the method's own sums over pairs, and anchor_nll, the anchors' mean losses per token summed.
    """
    assert (reference is not None) == settings.needs_reference, settings.method

    def objective(model: Any, micro: MicroBatch) -> LossResult:
        assert isinstance(micro, PairMicroBatch)
        found = _log_probs(model, micro)
        split = 2 * micro.n_pairs
        pairs = SequenceLogProbs(found.log_probs[:split], found.n_targets[:split])
        known = None if reference is None else reference.of(micro.numbers, found.log_probs.device)
        result = _pair_loss(settings, pair_scores(pairs, known))
        means = -found.log_probs[split:] / found.n_targets[split:].clamp(min=1)
        loss = result.loss_sum + settings.anchor_weight * means.sum()
        return LossResult(loss, micro.n_pairs, {**result.metrics, "anchor_nll": means.detach().sum()})

    return objective


def _pair_loss(settings: PreferenceSettings, scores: PairScores) -> LossResult:
    if settings.method == "orpo":
        return orpo_loss(scores, beta=settings.beta)
    return dpo_loss(
        scores, beta=settings.beta, label_smoothing=settings.label_smoothing, sft_weight=settings.sft_weight
    )


def _log_probs(model: Any, micro: PairMicroBatch) -> SequenceLogProbs:
    return sequence_log_probs(
        hidden_states(model, micro), head_of(model), micro.labels, micro.segment_lengths
    )


def _policy(model: Any, micro: PairMicroBatch) -> Tensor:
    """Log-probabilities [pairs, 2] in the mode that trains: the same kernels, and dropout if there is any."""
    with training_mode(model), torch.no_grad():
        found = _log_probs(model, micro).log_probs[: 2 * micro.n_pairs]
    return found.float().view(-1, 2)


def _numbers(micro: MicroBatch) -> tuple[int, ...]:
    return micro.numbers if isinstance(micro, PairMicroBatch) else ()
