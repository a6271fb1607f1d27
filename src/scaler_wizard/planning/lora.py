"""LoRA settings for a machine, a target and a model, every number with its reason. Pure.

Hardware decides bits, micro-batch and checkpointing; target capacity and data decide rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.fit import MIN_MICRO_BATCH, fits, what_would_fit
from scaler_wizard.planning.hardware import GIB, Hardware
from scaler_wizard.planning.memory import MemorySettings, adapter_bytes, adapter_parameters, estimate_for
from scaler_wizard.planning.rank import calculate_optimal_lora_rank

__all__ = [
    "LoraSuggestion",
    "Targets",
    "calculate_optimal_lora_rank",
    "choose_precision",
    "suggest_lora_config",
]

BASE_RANK = 16
MIN_RANK, MAX_RANK = 4, 256
ADAPTER_SHARE = 0.05
QLORA_BELOW_VRAM = 20 * GIB
TINY_PARAMETERS = 20_000_000
DEFAULT_ROW_TOKENS = 2048
ROWS_PER_BATCH = 8


@dataclass(frozen=True)
class Targets:
    """What the run is for."""

    context: int | None = None
    """Target context in tokens; the base context when empty."""
    capacity: float = 1.0
    """Wanted capacity as a multiple of the base's: 1 keeps it, 2 asks for much more."""
    low_memory: bool = False
    """Whether memory should be saved even at the price of speed."""
    data_tokens: int | None = None
    """Tokens of the training data, where known."""
    row_tokens: int | None = None
    """Longest row of the training data, where known."""


@dataclass(frozen=True)
class LoraSuggestion:
    """Adapter settings and what goes with them."""

    rank: int
    alpha: float
    dropout: float
    use_qlora: bool
    target_modules: tuple[str, ...]
    precision: str
    micro_batch_tokens: int
    context: int
    activation_checkpointing: bool
    reasons: tuple[str, ...]


def suggest_lora_config(hardware: Hardware, targets: Targets, facts: ModelFacts) -> LoraSuggestion:
    """Rank, alpha, dropout, bits and batch.

    Rank grows with target capacity and with data, never shrinks when memory grows, and falls with the
    number of context doublings. Alpha is 2 to 4 times the rank. QLoRA only with a GPU.
    """
    context = max(targets.context or facts.base_context, MIN_MICRO_BATCH)
    rank, reasons = _rank(hardware, targets, facts, context)
    alpha, why_alpha = _alpha(rank)
    dropout, why_dropout = _dropout(targets, facts)
    precision, why_precision = choose_precision(hardware, facts)
    use_qlora, why_bits = _qlora(hardware, targets, facts, rank)
    row = min(context, targets.row_tokens or min(context, DEFAULT_ROW_TOKENS))
    wanted = MemorySettings(
        strategy="qlora" if use_qlora else "lora",
        rank=rank,
        target_modules=None,
        precision=precision,
        micro_batch_tokens=row * ROWS_PER_BATCH,
        context=context,
        activation_checkpointing=False,
        device_kind="cuda" if hardware.gpus else "cpu",
        dropout=dropout,
    )
    found = what_would_fit(facts, wanted, hardware, min_micro_batch=row).settings
    checkpointing = found.activation_checkpointing
    micro = max(row, found.micro_batch_tokens)
    return LoraSuggestion(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        use_qlora=use_qlora,
        target_modules=facts.suffixes,
        precision=precision,
        micro_batch_tokens=micro,
        context=context,
        activation_checkpointing=checkpointing,
        reasons=(
            *reasons,
            why_alpha,
            why_dropout,
            why_bits,
            f"all {len(facts.suffixes)} kinds of linear layers: adapting only attention learns less "
            f"per parameter",
            why_precision,
            f"micro-batch {micro:,} tokens: the most that fits, at least one row of {row:,}",
            "activation checkpointing: needed to fit, about 30% slower"
            if checkpointing
            else "no activation checkpointing: it fits without, and it would cost about 30% of the time",
        ),
    )


def choose_precision(hardware: Hardware, facts: ModelFacts) -> tuple[str, str]:
    """(float32 | bfloat16, reason)."""
    if facts.parameters < TINY_PARAMETERS:
        return (
            "float32",
            f"float32: {facts.parameters:,} parameters are too few for bfloat16 to save anything",
        )
    if hardware.bf16:
        return "bfloat16", "bfloat16: the hardware computes in it, at half the memory"
    if hardware.gpus:
        return "float32", "float32: this GPU is older than Ampere and has no bfloat16"
    return "float32", "float32: this CPU has neither AVX512-BF16 nor AMX, and emulated bfloat16 is slower"


def _rank(hardware: Hardware, targets: Targets, facts: ModelFacts, context: int) -> tuple[int, list[str]]:
    capacity = min(4.0, max(0.25, targets.capacity))
    value = BASE_RANK * capacity
    reasons = [f"rank starts at {BASE_RANK}, times {capacity:g} for the capacity asked for"]
    if targets.data_tokens is not None:
        # LoRA stores roughly as much as its parameters allow; little data cannot fill a high rank.
        share = min(2.0, max(0.5, (targets.data_tokens / 1_000_000) ** 0.25))
        value *= share
        reasons.append(f"times {share:.2f} for {targets.data_tokens:,} tokens of data")
    doublings = max(0.0, math.log2(context / facts.base_context))
    if doublings:
        value /= 1 + 0.25 * doublings
        reasons.append(
            f"divided by {1 + 0.25 * doublings:.2f}: {doublings:g} context doublings need the "
            f"memory for tokens"
        )
    rank = min(MAX_RANK, max(MIN_RANK, int(value) // 4 * 4))
    # A share of the device's whole memory, not of what is left after the weights: so more memory never
    # means a lower rank, not even where it switches QLoRA off.
    per_rank = adapter_bytes(1, facts.linear_shapes) or 1
    most = int(hardware.memory_total * ADAPTER_SHARE / per_rank) // 4 * 4
    narrowest = min((min(s.inputs, s.outputs) for s in facts.linear_shapes), default=MIN_RANK)
    if most < rank:
        rank = max(MIN_RANK, most)
        reasons.append(f"at most {ADAPTER_SHARE:.0%} of the device's memory for adapters and their optimizer")
    if narrowest // 2 < rank:
        rank = max(MIN_RANK, narrowest // 2)
        reasons.append(f"at most half of the narrowest layer, {narrowest} features wide")
    trained = adapter_parameters(rank, facts.linear_shapes)
    reasons.append(
        f"rank {rank}: {trained:,} trained parameters, {16 * trained / 1e6:,.1f} MB with gradients "
        f"and optimizer"
    )
    return rank, reasons


def _alpha(rank: int) -> tuple[float, str]:
    ratio = 4 if rank <= 8 else 2 if rank >= 64 else 3
    return float(
        ratio * rank
    ), f"alpha {ratio * rank} = {ratio} x rank: small ranks need a larger step, large ones less"


def _dropout(targets: Targets, facts: ModelFacts) -> tuple[float, str]:
    if (
        facts.parameters >= TINY_PARAMETERS
        and targets.data_tokens is not None
        and targets.data_tokens < 1_000_000
    ):
        return (
            0.05,
            f"dropout 0.05: only {targets.data_tokens:,} tokens of data, which will be seen several times",
        )
    return 0.0, "no dropout: it costs a mask per layer and helps only when little data is repeated"


def _qlora(hardware: Hardware, targets: Targets, facts: ModelFacts, rank: int) -> tuple[bool, str]:
    gpu = hardware.gpu
    if gpu is None:
        asked = "although low memory was asked for, " if targets.low_memory else ""
        return (
            False,
            f"no QLoRA: {asked}4-bit layers (bitsandbytes) need a GPU here; the base stays in 16 or 32 bits",
        )
    if targets.low_memory:
        return True, "QLoRA: low memory was asked for"
    if gpu.total_bytes >= QLORA_BELOW_VRAM:
        return (
            False,
            f"no QLoRA: {gpu.total_bytes / GIB:.0f} GiB of VRAM, at least {QLORA_BELOW_VRAM / GIB:.0f}",
        )
    probe = MemorySettings(
        "lora", rank, None, "bfloat16", DEFAULT_ROW_TOKENS, DEFAULT_ROW_TOKENS, True, "cuda"
    )
    weights = facts.parameters * 2 / GIB
    if fits(estimate_for(facts, probe), hardware).ok:
        return False, f"no QLoRA: the {weights:.1f} GiB of 16-bit weights leave room for a micro-batch"
    return (
        True,
        f"QLoRA: {weights:.1f} GiB of 16-bit weights leave no room in {gpu.free_bytes / GIB:.1f} GiB of VRAM",
    )
