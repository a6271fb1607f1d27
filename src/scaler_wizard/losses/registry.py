"""The objectives by name. To add one: a file beside this one, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from scaler_wizard.losses.sft import Head, LossResult, sft_loss

ObjectiveName = Literal["sft"]

Loss = Callable[[Tensor, Head, Tensor], LossResult]
"""(hidden [B, T, H], head, labels [B, T]) -> loss sum, targets, metrics."""

LOSSES: dict[ObjectiveName, Loss] = {"sft": sft_loss}
