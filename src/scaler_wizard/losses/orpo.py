"""Odds-ratio preference optimisation (Hong et al. 2024): fine-tuning with a preference term, no reference."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scaler_wizard.losses.log_probs import PairScores
from scaler_wizard.losses.sft import LossResult

# log p = 0 has infinite odds; a mean log-probability this close to 0 is an answer known by heart anyway.
_MOST = -1e-6


def log_odds(mean_log_probs: Tensor) -> Tensor:
    """log(p / (1 - p)) of probabilities p given as mean log-probabilities per token; same shape, finite.

    log(1 - exp(x)) is log1p(-exp(x)) or log(-expm1(x)), whichever does not cancel (Maechler 2012).
    """
    x = mean_log_probs.clamp(max=_MOST)
    far = x < -math.log(2)
    # Each branch is fed a harmless number where the other is used: where() alone would leak its NaN gradient.
    by_exp = torch.log1p(-torch.exp(torch.where(far, x, -1.0)))
    by_expm1 = torch.log(-torch.expm1(torch.where(far, -1.0, x)))
    return x - torch.where(far, by_exp, by_expm1)


def orpo_loss(scores: PairScores, *, beta: float = 0.1, chosen_nll: Tensor | None = None) -> LossResult:
    """Sum over pairs of: loss of the chosen answer - beta log sigmoid(log odds ratio chosen : rejected).

    Odds are of the geometric-mean probability per token, so that length does not decide (Hong et al. 2024,
    eqs. 4, 6, 7; beta is the paper's lambda).

    Args:
        chosen_nll: mean loss per token to fine-tune on [P]; the chosen answer's alone when None (eq. 6). The
            authors' code and TRL take the mean over prompt and chosen answer: give that to agree with them.

    Returns:
        the sum over pairs, the number of pairs, and sums over pairs of: log_odds_ratio, reward_margin,
        chosen_reward, rejected_reward (beta times the mean log-probability), reward_accuracy, chosen_nll.
    """
    means = scores.policy / scores.n_targets.clamp(min=1)
    odds = log_odds(means)
    ratio = odds[:, 0] - odds[:, 1]
    nll = -means[:, 0] if chosen_nll is None else chosen_nll
    losses = nll - beta * F.logsigmoid(ratio)
    rewards = beta * means.detach()
    metrics = {
        "log_odds_ratio": ratio.detach().sum(),
        "reward_margin": (rewards[:, 0] - rewards[:, 1]).sum(),
        "reward_accuracy": (rewards[:, 0] > rewards[:, 1]).sum(),
        "chosen_reward": rewards[:, 0].sum(),
        "rejected_reward": rewards[:, 1].sum(),
        "chosen_nll": nll.detach().sum(),
    }
    return LossResult(losses.sum(), len(losses), metrics)
