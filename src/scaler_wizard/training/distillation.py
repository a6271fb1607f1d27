"""The objective of learning from a cached teacher: where losses, models and the cache meet."""

from __future__ import annotations

from typing import Any

from torch import nn

from scaler_wizard.data.batches import MicroBatch
from scaler_wizard.losses.chunked import at_targets
from scaler_wizard.losses.distill import Divergence, distillation_loss, sliced
from scaler_wizard.losses.match import hidden_match_loss
from scaler_wizard.losses.sft import LossResult
from scaler_wizard.specs.sections import DistillationSection
from scaler_wizard.training.forward import Objective, head_of, hidden_states
from scaler_wizard.training.teacher import TeacherCache


def distillation_objective(
    cache: TeacherCache, section: DistillationSection, projection: nn.Parameter | None = None
) -> Objective:
    """weight x T^2 divergence + (1 - weight) x cross-entropy + hidden_weight x error of hidden states.

    Args:
        projection: [H', H], learned with the student; None leaves hidden states alone.
    """
    divergence = Divergence(section.kind, section.temperature)

    def objective(model: Any, micro: MicroBatch) -> LossResult:
        hidden, targets = at_targets(hidden_states(model, micro), micro.labels)
        cached, head = cache.lookup(micro), sliced(head_of(model), cache.key.n_tokens)
        result = distillation_loss(hidden, head, targets, cached.top, divergence, weight=section.weight)
        if projection is None or cached.hidden is None:
            return result
        match = hidden_match_loss(hidden, cached.hidden, projection)
        loss = result.loss_sum + section.hidden_weight * match.loss_sum
        return LossResult(loss, result.n_labels, {**result.metrics, **match.metrics})

    return objective
