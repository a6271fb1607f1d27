"""Predicted time and disk of a phase. Pure formulas; every constant says where it comes from."""

from __future__ import annotations

import math

from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import Hardware
from scaler_wizard.planning.memory import adapter_parameters, prefix_parameters

# Share of the matrix rate that a training step reaches. CPU: in the frozen-base LoRA step of
# design/engine.md 30% of the time is matrix products. GPU: not measured here; the usual range is 0.3-0.5.
CPU_EFFICIENCY, GPU_EFFICIENCY = 0.3, 0.35
# Time per decoder layer and micro-batch that does not depend on its size (dispatch of some hundred
# kernels, forward and backward). Assumed, not measured: the one timing so far, 0.12 s for 4 layers of width
# 64 and 1,024 tokens on one core of a busy machine, also holds work that grows with the tokens.
CPU_LAYER_SECONDS, GPU_LAYER_SECONDS = 0.005, 0.0015
# A step in 32 bits against one in bf16: 1.3 / 0.17 TFLOP/s with AMX (design/engine.md), twice the width
# with AVX512-BF16, TF32 against bf16 on tensor cores.
AMX_SLOWDOWN, AVX512_SLOWDOWN, GPU_SLOWDOWN = 7.6, 2.0, 2.0


def effective_flops(hardware: Hardware, precision: str) -> float:
    """FLOP/s that training reaches in one precision."""
    efficiency = GPU_EFFICIENCY if hardware.gpus else CPU_EFFICIENCY
    rate = hardware.matmul_flops * efficiency
    if precision != "float32" or not hardware.bf16:
        return rate
    slowdown = GPU_SLOWDOWN if hardware.gpus else AMX_SLOWDOWN if hardware.cpu_amx else AVX512_SLOWDOWN
    return rate / slowdown


def trained_parameters(
    facts: ModelFacts, strategy: str, rank: int, target_modules: tuple[str, ...] | None
) -> int:
    """Number of trained parameters of a strategy."""
    if strategy == "full":
        return facts.parameters
    if strategy == "prefix_tuning":
        return prefix_parameters(facts)
    return adapter_parameters(rank, facts.shapes_of(target_modules))


def train_flops_per_token(
    facts: ModelFacts, trained: int, strategy: str, row: int, checkpointing: bool
) -> float:
    """Floating point operations per trained token in rows of `row` tokens.

    Forward 2N and backward through activations 2N; weight gradients, another 2 per parameter, only for what
    is trained (N is the matrix parameters; Kaplan 2020, section 2.1). Causal attention adds 2 * row * width
    per layer forward and twice that backward. Checkpointing repeats the forward pass.
    """
    matrices = facts.linear_parameters + facts.vocab_size * facts.hidden_size
    own = 6 * trained if strategy != "full" else 2 * matrices
    attention = 6 * row * facts.q_dim * facts.layers
    again = 2 * matrices + attention / 3 if checkpointing else 0.0
    return float(4 * matrices + own + attention + again)


def train_seconds(
    facts: ModelFacts,
    hardware: Hardware,
    *,
    precision: str,
    strategy: str,
    trained: int,
    row: int,
    batch_tokens: int,
    micro_batch_tokens: int,
    steps: int,
    checkpointing: bool,
) -> float:
    """Seconds of `steps` optimiser steps."""
    flops = train_flops_per_token(facts, trained, strategy, row, checkpointing) * batch_tokens
    fixed = (GPU_LAYER_SECONDS if hardware.gpus else CPU_LAYER_SECONDS) * facts.layers
    micro_batches = math.ceil(batch_tokens / micro_batch_tokens)
    return steps * (flops / effective_flops(hardware, precision) + fixed * micro_batches)


def evaluation_seconds(
    facts: ModelFacts, hardware: Hardware, precision: str, sequences: int, length: int
) -> float:
    """Seconds of forward passes over `sequences` sequences of `length` tokens."""
    per_token = 2 * facts.linear_parameters + 2 * length * facts.q_dim * facts.layers
    fixed = (GPU_LAYER_SECONDS if hardware.gpus else CPU_LAYER_SECONDS) * facts.layers / 3
    return sequences * (per_token * length / effective_flops(hardware, precision) + fixed)


def checkpoint_bytes(trained: int) -> int:
    """One committed checkpoint: trained weights and two Adam moments in 32 bits, and 1 MB of state."""
    return 12 * trained + 1_000_000
