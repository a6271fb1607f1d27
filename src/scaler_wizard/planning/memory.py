"""Predicted peak memory of a run, line by line, each with its explanation and error band.

The peak is what is always there plus the larger of a training step and an evaluation. Formulas follow
what autograd keeps in our engine: a frozen base, packed rows, attention that never stores a score
matrix (SDPA), logits only at labelled positions and at most `LOGIT_CHUNK` of them at a time. Constants
were measured with `python benchmarks/memory_model.py` (see there). Pure: knows no machine but the
`Hardware` it is given, and nothing of phases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from scaler_wizard.planning.facts import LinearShape, ModelFacts

DeviceKind = Literal["cpu", "cuda"]
When = Literal["always", "training", "evaluation"]

LOGIT_CHUNK = 1024
PREFIX_TOKENS = 16
EVALUATION_CHUNK = 2048
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# 4-bit NormalFloat with double quantisation: 4 + 8/64 + 32/(64*256) bits (QLoRA, Dettmers 2023, section 3).
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# RSS of a process with torch and transformers imported (387 MB) after its first tiny step (425 MB):
# `PYTHONPATH=src python benchmarks/memory_model.py --only tiny-fp32`.
CPU_RUNTIME_BYTES = 425_000_000
# CUDA context, cuBLAS workspace and kernels. Assumed, not measured: no GPU was at hand.
CUDA_RUNTIME_BYTES = 700_000_000
# On a CPU, glibc keeps freed blocks below its mmap threshold in a heap that fragments. Share of activations
# and logits on top, measured by benchmarks/memory_model.py: 0 (error below 5%) in a process started with
# MALLOC_MMAP_THRESHOLD_=1048576, 0.14 to 0.40 otherwise, and 0.6 to 3.3 with activation checkpointing.
# Chosen after seeing these six configurations, so the errors there are not those of an unseen model.
HEAP_SHARE, HEAP_SHARE_CHECKPOINTED = 0.30, 1.5


@dataclass(frozen=True)
class MemoryLine:
    """One use of memory. The true value lies within `band` (relative) of `bytes`."""

    name: str
    bytes: int
    explanation: str
    band: float
    when: When = "always"


@dataclass(frozen=True)
class MemoryEstimate:
    """Lines and their peak: `total` = always + max(training, evaluation), in bytes."""

    lines: tuple[MemoryLine, ...]
    total: int
    low: int
    high: int

    def line(self, name: str) -> MemoryLine:
        """The line of that name."""
        return next(line for line in self.lines if line.name == name)


@dataclass(frozen=True)
class MemorySettings:
    """Everything that decides memory besides the model."""

    strategy: str
    rank: int
    target_modules: tuple[str, ...] | None
    precision: str
    micro_batch_tokens: int
    context: int
    activation_checkpointing: bool
    device_kind: DeviceKind
    fragmented_heap: bool = True


def adapter_bytes(rank: int, shapes: Iterable[LinearShape]) -> int:
    """Bytes that adapters of `rank` cost in training: r * sum(in + out) * 16.

    Four 32-bit numbers per parameter: weight, gradient and the two Adam moments.
    """
    return 16 * adapter_parameters(rank, shapes)


def adapter_parameters(rank: int, shapes: Iterable[LinearShape]) -> int:
    """Parameters of A (r x in) and B (out x r) over all layers."""
    return rank * sum((shape.inputs + shape.outputs) * shape.count for shape in shapes)


def prefix_parameters(facts: ModelFacts) -> int:
    """Parameters of a prefix: a key and a value per layer for each of `PREFIX_TOKENS` positions."""
    return PREFIX_TOKENS * facts.layers * 2 * facts.kv_dim


def estimate_memory(
    facts: ModelFacts,
    *,
    strategy: str,
    rank: int,
    target_modules: Sequence[str] | None,
    precision: str,
    micro_batch_tokens: int,
    context: int,
    activation_checkpointing: bool,
    device_kind: DeviceKind,
    fragmented_heap: bool = True,
) -> MemoryEstimate:
    """Predicted peak of a training run.

    Args:
        strategy: lora, qlora, full or prefix_tuning.
        rank: adapter rank (ignored by full and prefix_tuning).
        target_modules: names of adapted linear layers; None for all.
        precision: float32 or bfloat16, the format of frozen weights and activations.
        micro_batch_tokens: tokens of one forward and backward pass; 0 for evaluation only.
        context: longest sequence that is evaluated.
        activation_checkpointing: keep only each layer's input and recompute the rest.
        device_kind: cpu or cuda.
        fragmented_heap: the process uses glibc's default allocator settings (only matters on a CPU).

    Raises:
        IncompatibleModelError: `target_modules` names a layer that the model does not have.
    """
    item = BYTES[precision]
    shapes = facts.shapes_of(target_modules)
    lines = [_weights(facts, strategy, item)]
    if micro_batch_tokens:
        lines += _trained(facts, strategy, rank, shapes)
        activations = _activations(facts, rank, shapes, item, micro_batch_tokens, activation_checkpointing)
        logits = _logits(facts, rank, shapes, item, micro_batch_tokens, activation_checkpointing)
        lines += [activations, logits]
        if device_kind == "cpu" and fragmented_heap:
            lines.append(_heap(activations.bytes + logits.bytes, activation_checkpointing))
    lines.append(
        MemoryLine(
            "kv cache",
            2 * facts.layers * facts.kv_dim * context * item,
            f"keys and values of one evaluated sequence of {context:,} tokens",
            0.02,
            "evaluation",
        )
    )
    lines.append(_evaluation(facts, item, min(context, EVALUATION_CHUNK)))
    lines.append(_runtime(device_kind))
    return _sum(tuple(lines))


def estimate_for(facts: ModelFacts, settings: MemorySettings) -> MemoryEstimate:
    """`estimate_memory` with the settings as one record."""
    return estimate_memory(
        facts,
        strategy=settings.strategy,
        rank=settings.rank,
        target_modules=settings.target_modules,
        precision=settings.precision,
        micro_batch_tokens=settings.micro_batch_tokens,
        context=settings.context,
        activation_checkpointing=settings.activation_checkpointing,
        device_kind=settings.device_kind,
        fragmented_heap=settings.fragmented_heap,
    )


def with_line(estimate: MemoryEstimate, line: MemoryLine) -> MemoryEstimate:
    """The estimate with one more line."""
    return _sum((*estimate.lines, line))


def calibrate(estimate: MemoryEstimate, measured_bytes: int) -> MemoryEstimate:
    """The estimate corrected by one measured peak.

    The difference goes to the lines that were uncertain, in proportion to bytes x band; where those would
    become negative, every line is scaled. Afterwards the total is the measured one, within 3%.
    """
    assert measured_bytes > 0
    peak = (
        "training"
        if _part(estimate.lines, "training") >= _part(estimate.lines, "evaluation")
        else "evaluation"
    )
    difference = measured_bytes - estimate.total
    doubt = sum(line.bytes * line.band for line in estimate.lines if line.when in ("always", peak))
    share = difference / doubt if doubt else 0.0
    lines = []
    for line in estimate.lines:
        factor = 1 + share * line.band if line.when in ("always", peak) else 1.0
        lines.append(dataclasses.replace(line, bytes=round(line.bytes * factor), band=min(line.band, 0.03)))
    if any(line.bytes < 0 for line in lines):
        scale = measured_bytes / estimate.total
        lines = [
            dataclasses.replace(line, bytes=round(line.bytes * scale), band=min(line.band, 0.03))
            for line in estimate.lines
        ]
    low, high = round(measured_bytes * 0.97), round(measured_bytes * 1.03)
    return MemoryEstimate(tuple(lines), measured_bytes, low, high)


def _weights(facts: ModelFacts, strategy: str, item: int) -> MemoryLine:
    if strategy == "qlora":
        rest = facts.parameters - facts.linear_parameters
        size = round(facts.linear_parameters * NF4_BYTES) + rest * item
        return MemoryLine(
            "weights", size, "linear layers in 4 bits plus block constants, embeddings in 16 bits", 0.03
        )
    size = facts.parameters * item
    return MemoryLine("weights", size, f"{facts.parameters:,} parameters x {item} bytes", 0.01)


def _trained(facts: ModelFacts, strategy: str, rank: int, shapes: Sequence[LinearShape]) -> list[MemoryLine]:
    if strategy == "full":
        return [
            MemoryLine("gradients", facts.parameters * 4, "one 32-bit gradient per parameter", 0.02),
            MemoryLine("optimizer", facts.parameters * 8, "two 32-bit Adam moments per parameter", 0.02),
        ]
    if strategy == "prefix_tuning":
        size = 16 * prefix_parameters(facts)
        return [MemoryLine("prefix", size, f"{PREFIX_TOKENS} trained positions x 16 bytes per number", 0.02)]
    size = adapter_bytes(rank, shapes)
    text = f"rank {rank} on {sum(shape.count for shape in shapes)} layers: r x sum(in + out) x 16 bytes"
    return [MemoryLine("adapters", size, text, 0.02)]


def _activations(
    facts: ModelFacts, rank: int, shapes: Sequence[LinearShape], item: int, tokens: int, checkpointing: bool
) -> MemoryLine:
    per_layer = layer_activation_bytes(facts, rank, shapes, item)
    if checkpointing:
        kept = facts.layers * facts.hidden_size * item + per_layer
        text = f"inputs of {facts.layers} layers and one layer recomputed, for {tokens:,} tokens"
    else:
        kept = facts.layers * per_layer
        text = f"{per_layer / 1024:,.0f} KiB per token and layer, for {tokens:,} tokens"
    size = (kept + _backward_bytes(facts, item) + 2 * facts.hidden_size * item) * tokens
    return MemoryLine("activations", size, text, 0.10, "training")


def _backward_bytes(facts: ModelFacts, item: int) -> int:
    """Per token: gradients of one layer's widest tensors, beside what its backward pass consumes."""
    return (4 * facts.intermediate_size + 4 * facts.hidden_size) * item


def layer_activation_bytes(facts: ModelFacts, rank: int, shapes: Sequence[LinearShape], item: int) -> int:
    """Bytes per token that autograd keeps for one decoder layer whose base weights are frozen.

    Two norms keep their input in 32 bits; attention keeps q, k, v and its output; the gated MLP keeps
    gate, its activation, up and their product; every adapter keeps the product with A, and shares its
    input with its siblings.
    """
    norms = 2 * facts.hidden_size * (4 if item == 4 else 4 + item)
    normed = 2 * facts.hidden_size * item
    attention = (2 * facts.q_dim + 2 * facts.kv_dim) * item
    mlp = 4 * facts.intermediate_size * item
    adapters = rank * item * sum(shape.count for shape in shapes) // max(1, facts.layers)
    return norms + normed + attention + mlp + adapters


def _heap(freed: int, checkpointing: bool) -> MemoryLine:
    share, band = (HEAP_SHARE_CHECKPOINTED, 0.6) if checkpointing else (HEAP_SHARE, 0.5)
    text = f"freed blocks that the heap keeps, {share:.0%} of activations and logits"
    return MemoryLine("allocator", round(share * freed), text, band, "training")


def _logits(
    facts: ModelFacts, rank: int, shapes: Sequence[LinearShape], item: int, tokens: int, checkpointing: bool
) -> MemoryLine:
    """Logits of one chunk. With checkpointing they are gone before the first layer is recomputed, so only
    what they need beyond that layer counts.
    """
    rows = min(LOGIT_CHUNK, tokens)
    size = rows * facts.vocab_size * 4 * 3
    text = f"{rows:,} positions x {facts.vocab_size:,} x 4 bytes, 3 times (logits, softmax, gradient)"
    if checkpointing:
        layer = layer_activation_bytes(facts, rank, shapes, item) + _backward_bytes(facts, item)
        size, text = max(0, size - layer * tokens), text + ", less the recomputed layer"
    return MemoryLine("logits", size, text, 0.15, "training")


def _evaluation(facts: ModelFacts, item: int, tokens: int) -> MemoryLine:
    width = 4 * facts.hidden_size + 3 * facts.intermediate_size + 2 * facts.q_dim
    size = width * item * tokens + min(LOGIT_CHUNK, tokens) * facts.vocab_size * 4 * 2
    return MemoryLine(
        "evaluation",
        size,
        f"one layer's activations and logits for a chunk of {tokens:,} tokens",
        0.2,
        "evaluation",
    )


def _runtime(device_kind: DeviceKind) -> MemoryLine:
    if device_kind == "cpu":
        return MemoryLine("runtime", CPU_RUNTIME_BYTES, "Python, torch, transformers: measured", 0.05)
    return MemoryLine("runtime", CUDA_RUNTIME_BYTES, "CUDA context and kernels: assumed, not measured", 0.35)


def _sum(lines: tuple[MemoryLine, ...]) -> MemoryEstimate:
    def peak(weigh: float) -> int:
        parts = {
            when: sum(line.bytes * (1 + weigh * line.band) for line in lines if line.when == when)
            for when in ("always", "training", "evaluation")
        }
        return round(parts["always"] + max(parts["training"], parts["evaluation"]))

    return MemoryEstimate(lines, peak(0.0), peak(-1.0), peak(1.0))


def _part(lines: Iterable[MemoryLine], when: When) -> int:
    return sum(line.bytes for line in lines if line.when == when)
