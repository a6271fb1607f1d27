"""Direct preference optimisation (Rafailov et al. 2023): prefer the chosen answer, against a reference."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from scaler_wizard.losses.log_probs import PairScores
from scaler_wizard.losses.sft import LossResult


def dpo_loss(
    scores: PairScores, *, beta: float = 0.1, label_smoothing: float = 0.0, sft_weight: float = 0.0
) -> LossResult:
    """Sum over pairs of -log sigmoid(margin), margin = beta (log-ratio of chosen - log-ratio of rejected).

    A log-ratio is log p_policy(answer) - log p_reference(answer), so that the loss of a pair is ln 2 as long
    as the policy is the reference (Rafailov et al. 2023, eq. 7).

    Args:
        label_smoothing: share of pairs taken to be labelled the wrong way round: (1 - e) of the loss above
            and e of the reversed pair's (Mitchell 2023, "conservative DPO", eq. 3); below 0.5.
        sft_weight: factor of the chosen answer's mean loss per token, which is added (RPO's alpha: Pang et
            al. 2024, "Iterative reasoning preference optimization", eq. 1). The anchor that keeps the chosen
            answer's own probability from falling together with the rejected one's.

    Returns:
        the sum over pairs, the number of pairs, and sums over pairs of: reward_margin, chosen_reward,
        rejected_reward (nats times beta), reward_accuracy (1 where the margin is above 0), chosen_nll (mean
        per token of the pair).
    """
    assert scores.reference is not None, "DPO needs the reference's log-probabilities"
    assert 0 <= label_smoothing < 0.5, label_smoothing
    rewards = beta * (scores.policy - scores.reference)
    margin = rewards[:, 0] - rewards[:, 1]
    losses = -F.logsigmoid(margin)
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-margin)
    chosen_nll = -scores.policy[:, 0] / scores.n_targets[:, 0].clamp(min=1)
    if sft_weight:
        losses = losses + sft_weight * chosen_nll
    return LossResult(losses.sum(), len(losses), _metrics(rewards, chosen_nll))


def _metrics(rewards: Tensor, chosen_nll: Tensor) -> dict[str, Tensor]:
    rewards = rewards.detach()
    margin = rewards[:, 0] - rewards[:, 1]
    return {
        "reward_margin": margin.sum(),
        "reward_accuracy": (margin > 0).sum(),
        "chosen_reward": rewards[:, 0].sum(),
        "rejected_reward": rewards[:, 1].sum(),
        "chosen_nll": chosen_nll.detach().sum(),
    }
