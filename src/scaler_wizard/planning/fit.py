"""Does an estimate fit a machine, and if not, what would: settings shrink in one stated order."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import GIB, Hardware
from scaler_wizard.planning.memory import MemoryEstimate, MemorySettings, estimate_for

MIN_MICRO_BATCH = 64
MIN_RANK = 4
MIN_CONTEXT = 64


@dataclass(frozen=True)
class Fit:
    """Whether the predicted peak stays within `limit` bytes. `tight`: its upper error band does not."""

    ok: bool
    tight: bool
    need: int
    limit: int
    text: str


@dataclass(frozen=True)
class Proposal:
    """Settings that fit (or the smallest ones tried), the steps that led there, and all of it in words."""

    settings: MemorySettings
    estimate: MemoryEstimate
    fit: Fit
    steps: tuple[str, ...]
    text: str


def fits(estimate: MemoryEstimate, hardware: Hardware, fraction: float = 0.9) -> Fit:
    """Compare a predicted peak with `fraction` of the training device's free memory.

    The contract guarantees the fraction; 0.9 leaves the rest to other programs.
    """
    limit = int(hardware.memory_available * fraction)
    kind = "VRAM" if hardware.gpus else "RAM"
    ok, tight = estimate.total <= limit, estimate.high > limit
    verdict = ("fits, but its error band does not" if tight else "fits") if ok else "does not fit"
    text = (
        f"{estimate.total / GIB:.2f} GiB ({estimate.low / GIB:.2f} to {estimate.high / GIB:.2f}) {verdict} "
        f"in {limit / GIB:.2f} GiB ({fraction:.0%} of the free {kind})"
    )
    return Fit(ok, tight, estimate.total, limit, text)


def what_would_fit(
    facts: ModelFacts,
    settings: MemorySettings,
    hardware: Hardware,
    *,
    min_micro_batch: int = MIN_MICRO_BATCH,
    fraction: float = 0.9,
) -> Proposal:
    """Shrink until it fits: micro-batch, checkpointing, 4-bit base (GPU only), rank, context.

    Args:
        min_micro_batch: tokens of the longest row; a smaller micro-batch could not hold it. Shrinks with
            the context.
    """
    steps: list[str] = []
    current = settings
    for smaller, words in _shrinkings(settings, hardware, min_micro_batch):
        if fits(estimate_for(facts, current), hardware, fraction).ok:
            break
        current = dataclasses.replace(current, **smaller)
        steps = [step for step in steps if step.split(" ")[0] != words.split(" ")[0]] + [words]
    estimate = estimate_for(facts, current)
    fit = fits(estimate, hardware, fraction)
    if fit.ok:
        text = ("as asked" if not steps else "with " + ", ".join(steps)) + f": {fit.text}"
    else:
        text = f"nothing does on this machine; even with {', '.join(steps)}: {fit.text}. Take a smaller model"
    return Proposal(current, estimate, fit, tuple(steps), text)


Change = tuple[dict[str, Any], str]


def _shrinkings(settings: MemorySettings, hardware: Hardware, min_micro_batch: int) -> list[Change]:
    """Every step in order; each holds only what it changes."""
    changes: list[Change] = []
    micro = settings.micro_batch_tokens
    while micro > min_micro_batch:
        micro = max(min_micro_batch, micro // 2)
        changes.append(({"micro_batch_tokens": micro}, f"micro-batches of {micro:,} tokens"))
    if not settings.activation_checkpointing:
        changes.append(({"activation_checkpointing": True}, "activation checkpointing"))
    if settings.strategy == "full":
        changes.append(({"strategy": "lora"}, "strategy lora instead of full"))
    if settings.strategy in ("full", "lora") and hardware.gpus:
        changes.append(({"strategy": "qlora"}, "strategy qlora (4-bit base)"))
    rank = settings.rank
    while settings.strategy != "prefix_tuning" and rank > MIN_RANK:
        rank = max(MIN_RANK, rank // 2)
        changes.append(({"rank": rank}, f"rank {rank}"))
    context = settings.context
    while context > MIN_CONTEXT:
        context = max(MIN_CONTEXT, context // 2)
        micro = min(micro, context)
        changes.append(({"context": context, "micro_batch_tokens": micro}, f"context {context:,}"))
    return changes
