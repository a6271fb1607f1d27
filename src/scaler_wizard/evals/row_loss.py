"""Mean loss of token rows over the tokens that a training would learn."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from torch import nn

from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.inference.scoring import score_positions


def row_losses(
    model: nn.Module, rows: Sequence[TokenRow], on_progress: OnProgress = no_progress
) -> list[float]:
    """Cross-entropy of each row in nats, mean over its trained tokens. Rows without one are left out."""
    usable = [row for row in rows if row.n_labels]
    sequences = [row.ids.tolist() for row in usable]
    positions = [(np.flatnonzero(row.trained[1:]) + 1).tolist() for row in usable]
    scores = score_positions(model, sequences, positions, on_progress=on_progress)
    return [-fmean(score.logprobs) for score in scores]
