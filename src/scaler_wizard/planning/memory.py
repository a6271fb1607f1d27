"""Predicted peak memory of a run, line by line, each with its explanation and error band.

The peak is what is always there plus the larger of a training step and an evaluation. Formulas follow
what our engine keeps for the backward pass: a frozen base, packed rows, attention that never stores a score
matrix, fused layers where they qualify (`FUSED`), logits of one chunk of targets at a time. Constants were
measured with `python benchmarks/memory_model.py` (see there). Pure: knows no machine but the
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
Way = Literal["fused", "adapted", "plain"]

# Logits at a time, as `losses.sft` takes them: rows of at most so many numbers, by device.
MAX_LOGIT_ROWS, MIN_LOGIT_ROWS = 1024, 32
LOGIT_CHUNK: dict[DeviceKind, int] = {"cpu": 1 << 22, "cuda": 1 << 25}
# Scores of one block of `training.blocked_attention`.
SCORE_BLOCK = 1 << 22
BLOCK_QUERIES = 128
# Model types whose norms and gated MLP run fused when every linear layer has a plain LoRA adapter.
FUSED = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "qwen3_vl_text", "gemma", "gemma2", "gemma3", "gemma3_text",
})  # fmt: skip
PREFIX_TOKENS = 16
# What `inference.modes.InferenceLimits` allows at once: tokens of a batch, positions, bytes and rows of the
# cache, and logits.
EVALUATION_BATCH, EVALUATION_ROWS, EVALUATION_LOGITS = 4096, 64, 1 << 26
EVALUATION_CACHE, EVALUATION_CACHE_BYTES = 32_768, 1 << 29
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# 4-bit NormalFloat with double quantisation: 4 + 8/64 + 32/(64*256) bits (QLoRA, Dettmers 2023, section 3).
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# RSS of a worker with everything imported (414 MB) after its first tiny step (440 MB):
# `python benchmarks/memory_model.py --only tiny-fp32`.
CPU_RUNTIME_BYTES = 440_000_000
# CUDA context, cuBLAS workspace and kernels. Assumed, not measured: no GPU was at hand.
CUDA_RUNTIME_BYTES = 700_000_000
# Gaps that the heap keeps between blocks, as a share of activations and logits: 0.29 to 0.41 measured by
# benchmarks/memory_model.py with `allocator.keep_freed_memory`; none with `return_freed_memory`, which goes
# with activation checkpointing.
HEAP_SHARE = 0.35


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
    dropout: float = 0.0


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
    dropout: float = 0.0,
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
        dropout: of the adapters; with any, layers run as PEFT has them and keep more.

    Raises:
        IncompatibleModelError: `target_modules` names a layer that the model does not have.
    """
    item = BYTES[precision]
    shapes = facts.shapes_of(target_modules)
    lines = [_weights(facts, strategy, item)]
    if micro_batch_tokens:
        lines += _trained(facts, strategy, rank, shapes)
        way = _way(facts, strategy, shapes, dropout)
        per_layer = _layer_bytes(facts, rank, shapes, item, way, dropout)
        lines += [
            _activations(facts, per_layer, item, micro_batch_tokens, activation_checkpointing),
            _logits(facts, item, micro_batch_tokens, device_kind),
        ]
        if device_kind == "cpu" and not activation_checkpointing:
            lines.append(_heap(sum(line.bytes for line in lines if line.when == "training")))
    lines += _evaluation(facts, strategy, item, context)
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
        dropout=settings.dropout,
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
    training, evaluation = (_part(estimate.lines, when) for when in ("training", "evaluation"))
    peak: When = "training" if training >= evaluation else "evaluation"
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
    # What was measured as the peak bounds the other part too.
    other: When = "evaluation" if peak == "training" else "training"
    above = _part(lines, other) / max(1, _part(lines, peak))
    if above > 1:
        lines = [
            dataclasses.replace(line, bytes=int(line.bytes / above)) if line.when == other else line
            for line in lines
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


def _way(facts: ModelFacts, strategy: str, shapes: Sequence[LinearShape], dropout: float) -> Way:
    """How the layers will run (`training.fast_path` decides the same from the loaded modules)."""
    if strategy != "lora":
        return "plain"
    whole = len(shapes) == len(facts.linear_shapes)
    return "fused" if whole and not dropout and facts.model_type in FUSED else "adapted"


def _activations(
    facts: ModelFacts, per_layer: int, item: int, tokens: int, checkpointing: bool
) -> MemoryLine:
    if checkpointing:
        kept = facts.layers * facts.hidden_size * item + per_layer
        text = f"inputs of {facts.layers} layers and one layer recomputed, for {tokens:,} tokens"
    else:
        kept = facts.layers * per_layer
        text = f"{per_layer / 1024:,.0f} KiB per token and layer, for {tokens:,} tokens"
    size = (kept + _backward_bytes(facts, item)) * tokens
    return MemoryLine("activations", size, text, 0.10, "training")


def _backward_bytes(facts: ModelFacts, item: int) -> int:
    """Per token: one MLP's gradients, and the final hidden states and theirs, before and after the norm."""
    return (4 * facts.intermediate_size + 6 * facts.hidden_size) * item


def _layer_bytes(
    facts: ModelFacts, rank: int, shapes: Sequence[LinearShape], item: int, way: Way, dropout: float
) -> int:
    """Bytes per token that a decoder layer with frozen base weights keeps for its backward pass.

    Norms keep their input, attention q, k, v and its output, the gated MLP its input, gate and up; every
    adapter keeps its product with A and shares its input with its siblings. Layers that are not fused also
    keep a 32-bit copy for each norm, the activation and the product in the MLP; adapters that are not
    fused a copy of each input in their own 32 bits, and dropout its factors, in 32 bits on a CPU.
    """
    attention = 2 * facts.q_dim + 2 * facts.kv_dim
    kept = (4 * facts.hidden_size + attention + 2 * facts.intermediate_size) * item
    layers = max(1, facts.layers)
    kept += rank * item * sum(shape.count for shape in shapes) // layers
    if way == "fused":
        return kept
    kept += 2 * facts.hidden_size * (item if item == 4 else 4 + item) + 2 * facts.intermediate_size * item
    if way == "adapted":
        copies = 8 if dropout else 0 if item == 4 else 4
        kept += copies * sum(shape.inputs * shape.count for shape in shapes) // layers
    return kept


def _heap(used: int) -> MemoryLine:
    text = f"gaps in the heap, {HEAP_SHARE:.0%} of activations and logits"
    return MemoryLine("allocator", round(HEAP_SHARE * used), text, 0.5, "training")


def _logits(facts: ModelFacts, item: int, tokens: int, device_kind: DeviceKind) -> MemoryLine:
    """One chunk of logits: in the model's format, in 32 bits, and their gradient; with one block of scores.

    They are not held at the same time, but the allocator keeps room for both.
    """
    rows = logit_rows(facts.vocab_size, tokens, device_kind)
    size = rows * facts.vocab_size * (4 + 2 * item)
    text = f"{rows:,} positions x {facts.vocab_size:,}, in {item} bytes twice and once in 4"
    if device_kind == "cpu":
        group = max(1, facts.heads // max(1, facts.kv_heads))
        scores = min(SCORE_BLOCK, group * BLOCK_QUERIES * tokens)
        size, text = size + scores * (4 + 2 * item), f"{text}; {scores:,} scores of attention"
    return MemoryLine("logits", size, text, 0.15, "training")


def logit_rows(vocabulary: int, tokens: int, device_kind: DeviceKind) -> int:
    """Positions whose logits exist at the same time."""
    rows = max(MIN_LOGIT_ROWS, min(MAX_LOGIT_ROWS, LOGIT_CHUNK[device_kind] // vocabulary))
    return min(rows, tokens)


def _evaluation(facts: ModelFacts, strategy: str, item: int, context: int) -> list[MemoryLine]:
    """What sequences under way hold, a batch's activations and logits, and all weights once more.

    The copy is there while adapters are folded in, and again while an export is read back and compared.
    """
    position = 2 * facts.layers * facts.kv_dim * item
    held = min(EVALUATION_CACHE, EVALUATION_CACHE_BYTES // position, EVALUATION_ROWS * context)
    held = max(context, held)
    width = 4 * facts.hidden_size + 3 * facts.intermediate_size + 2 * facts.q_dim
    rows = max(1, min(EVALUATION_BATCH, EVALUATION_LOGITS // facts.vocab_size))
    lines = [
        MemoryLine(
            "kv cache",
            position * held,
            f"keys and values of {held:,} tokens that are generated or read at once",
            0.3,
            "evaluation",
        ),
        MemoryLine(
            "evaluation",
            width * item * EVALUATION_BATCH + rows * facts.vocab_size * 4 * 2,
            f"one layer's activations for {EVALUATION_BATCH:,} tokens, and their logits",
            0.2,
            "evaluation",
        ),
    ]
    if strategy in ("lora", "full"):
        text = "all weights once more: adapters folded in to evaluate, or the export read back"
        lines.append(MemoryLine("second copy", facts.parameters * item, text, 0.05, "evaluation"))
    return lines


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
