"""A packed forward pass over a router's rows, with gradients: hidden states at the end, or after a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scaler_wizard.inference.experts.forward import tapped
from scaler_wizard.inference.experts.routers.rows import RouterBatch
from scaler_wizard.training.forward import hidden_states


def last_hidden(model: Any, batch: RouterBatch) -> Tensor:
    """Final hidden states at the last token of each segment [segments, h], before the head."""
    hidden = hidden_states(model, batch)[0]
    picked: Tensor = hidden[batch.cu_seqlens[1:].long() - 1]
    return picked


def pooled_hidden(model: Any, batch: RouterBatch, layer: int) -> Tensor:
    """Mean hidden states of each segment after `layer` decoder layers [segments, h], float32."""
    with tapped(model.get_base_model(), layer, stop=True) as caught:
        hidden_states(model, batch)
    hidden = caught[0][0].float()
    parts = hidden.split_with_sizes(batch.segment_lengths)
    return torch.stack([part.mean(0) for part in parts])
