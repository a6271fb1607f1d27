"""How a router is trained, from its number of rows: rank, rate, batch, patience, each with a reason. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from scaler_wizard.planning.lora import TINY_PARAMETERS

ROWS_PER_RANK: Final = 450
MIN_RANK, MAX_RANK = 2, 32
ROWS_PER_STEP: Final = 16
MIN_RATE, MAX_RATE = 2e-5, 1e-4
TINY_FACTOR: Final = 50
"""5e-3 on the embedded model, which learns in 250 steps with it (benchmarks/routers.py)."""
PATIENCE: Final = 3
LOOKS_PER_EPOCH: Final = 2
EPOCHS: Final = 10


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """How a router's adapter is trained. The probe needs none of it."""

    rank: int
    alpha: float
    learning_rate: float
    batch_rows: int
    """Rows of one forward pass, at most."""
    accumulation: int
    """Forward passes of one optimiser step."""
    look_steps: int
    """Optimiser steps between two looks at the validation rows."""
    patience: int
    """Looks without progress after which training stops; the best look's weights are kept."""
    max_steps: int
    reasons: Mapping[str, str]
    """Why each value is what it is, by name."""

    @property
    def step_rows(self) -> int:
        """Rows of one optimiser step."""
        return self.batch_rows * self.accumulation

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {**asdict(self), "reasons": dict(self.reasons)}


def suggest_router(
    n_rows: int,
    *,
    parameters: int,
    vision: bool = False,
    longest_row: int = 1,
    micro_batch_tokens: int = 4096,
    rank: int | None = None,
    learning_rate: float | None = None,
    max_steps: int | None = None,
    patience: int | None = None,
) -> RouterSettings:
    """Settings for `n_rows` training rows; what is given is kept, the rest is chosen.

    Args:
        parameters: of the base model.
        vision: rows with pictures: half the rank, since most tokens of a row are of one picture.
        longest_row: tokens of the longest row, with the router's suffix.
        micro_batch_tokens: most tokens of one forward pass.
    """
    assert n_rows > 0
    chosen_rank, why_rank = _rank(n_rows, vision) if rank is None else (rank, "set in the job")
    rate, why_rate = (
        _rate(chosen_rank, parameters) if learning_rate is None else (learning_rate, "set in the job")
    )
    batch = 1 << max(0, min(ROWS_PER_STEP, micro_batch_tokens // max(1, longest_row)).bit_length() - 1)
    epoch = math.ceil(n_rows / ROWS_PER_STEP)
    look = max(1, epoch // LOOKS_PER_EPOCH)
    steps = EPOCHS * epoch if max_steps is None else max_steps
    reasons = {
        "rank": why_rank,
        "alpha": "twice the rank, so that the adapter's scale does not depend on it",
        "learning_rate": why_rate,
        "batch_rows": f"{ROWS_PER_STEP} rows a step; {batch} rows of {longest_row} tokens fit a forward pass",
        "accumulation": f"{ROWS_PER_STEP // batch} passes make the {ROWS_PER_STEP} rows of a step",
        "look_steps": f"{LOOKS_PER_EPOCH} looks in each of {epoch} steps over all rows",
        "patience": "set in the job" if patience is not None else f"{PATIENCE} looks without progress",
        "max_steps": "set in the job" if max_steps is not None else f"{EPOCHS} times over all rows at most",
    }
    return RouterSettings(
        rank=chosen_rank, alpha=2.0 * chosen_rank, learning_rate=rate, batch_rows=batch,
        accumulation=ROWS_PER_STEP // batch, look_steps=min(look, steps),
        patience=PATIENCE if patience is None else patience, max_steps=steps, reasons=reasons,
    )  # fmt: skip


def _rank(n_rows: int, vision: bool) -> tuple[int, str]:
    """The power of two nearest to n / 450 on a logarithmic scale, within 2..32."""
    nearest = 2 ** round(math.log2(max(n_rows / ROWS_PER_RANK, 1e-9)))
    rank = max(MIN_RANK, min(MAX_RANK, nearest))
    why = f"{n_rows:,} rows / {ROWS_PER_RANK} to a power of two in {MIN_RANK}..{MAX_RANK}"
    if vision:
        return max(MIN_RANK, rank // 2), f"{why}, half of it for pictures"
    return rank, why


def _rate(rank: int, parameters: int) -> tuple[float, str]:
    rate = min(MAX_RATE, max(MIN_RATE, 1e-4 * math.sqrt(4 / rank)))
    why = f"1e-4 x sqrt(4 / rank) within {MIN_RATE:g}..{MAX_RATE:g}"
    if parameters >= TINY_PARAMETERS:
        return rate, why
    return TINY_FACTOR * rate, f"{why}, x {TINY_FACTOR} below {TINY_PARAMETERS:,} parameters: narrow layers"
