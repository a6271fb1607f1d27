"""The objectives by name. To add one: a file beside this one, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from scaler_wizard.losses.dpo import dpo_loss
from scaler_wizard.losses.orpo import orpo_loss
from scaler_wizard.losses.sft import Head, LossResult, sft_loss

ObjectiveName = Literal["sft"]
PreferenceName = Literal["dpo", "orpo"]

Loss = Callable[[Tensor, Head, Tensor], LossResult]
"""(hidden [B, T, H], head, labels [B, T]) -> loss sum, targets, metrics."""

PreferenceLoss = Callable[..., LossResult]
"""(`log_probs.PairScores`, its own settings by keyword) -> loss sum over pairs, pairs, metrics."""

LOSSES: dict[ObjectiveName, Loss] = {"sft": sft_loss}
"""Objectives of labelled tokens alone."""

PREFERENCE_LOSSES: dict[PreferenceName, PreferenceLoss] = {"dpo": dpo_loss, "orpo": orpo_loss}
"""Objectives of answer pairs."""
