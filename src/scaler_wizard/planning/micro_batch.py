"""The size of a forward pass: corrected by one measured step, and remembered between runs. Pure.

A plan takes the largest micro-batch that the memory model says fits. The first step is the experiment: its
peak scales what the model says about the part that grows with the tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, replace

from scaler_wizard.planning.facts import ModelFacts, facts_digest
from scaler_wizard.planning.hardware import Hardware
from scaler_wizard.planning.memory import MemorySettings, estimate_for
from scaler_wizard.store.learned_sizes import LearnedSize

MEASURED_BAND = 0.05
"""What a second step may take more than the measured one: rows differ, the heap fragments."""
SMALLEST_FACTOR, LARGEST_FACTOR = 0.5, 4.0
"""How far a measurement is believed: beyond this it says something about the process, not the model."""
ROOMIER = 1.25
"""With so many times the memory that was free when a size was learned, it is not held to."""


def machine_key(hardware: Hardware) -> str:
    """The machine without what changes from minute to minute (free memory, free disk)."""
    gpus = sorted((gpu.name, gpu.total_bytes) for gpu in hardware.gpus)
    return _digest([gpus, hardware.cpu_model, hardware.cpu_cores, hardware.ram_total])


def learned_key(model_digest: str, machine: str, settings: MemorySettings) -> str:
    """One key for everything that memory depends on but the size itself."""
    fields = asdict(replace(settings, micro_batch_tokens=0))
    fields["target_modules"] = sorted(settings.target_modules) if settings.target_modules else None
    return _digest([model_digest, machine, fields])


def learned_cap(key: str, learned: Iterable[LearnedSize], memory_available: int) -> LearnedSize | None:
    """The newest size learned for `key`; None where none was, or where there is much more memory now."""
    found = [item for item in learned if item.key == key]
    newest = max(found, key=lambda item: item.time, default=None)
    if newest is None or memory_available > ROOMIER * newest.memory_available:
        return None
    return newest


def learned_size(
    facts: ModelFacts, hardware: Hardware, settings: MemorySettings, learned: Iterable[LearnedSize]
) -> tuple[int, tuple[str, ...]]:
    """The settings' micro-batch, or the smaller one that an earlier run was brought down to, with a note."""
    key = learned_key(facts_digest(facts), machine_key(hardware), settings)
    cap = learned_cap(key, learned, hardware.memory_available)
    if cap is None or cap.tokens >= settings.micro_batch_tokens:
        return settings.micro_batch_tokens, ()
    note = (
        f"micro-batches of at most {cap.tokens:,} tokens at a context of {settings.context:,}: an earlier "
        "run of this model on this machine ran out of memory with more"
    )
    return cap.tokens, (note,)


def corrected_size(
    facts: ModelFacts, settings: MemorySettings, *, ran: int, measured: int, limit: int, least: int, most: int
) -> int:
    """Tokens of a forward pass after one step of `ran` tokens took `measured` bytes.

    Args:
        settings: what the step was planned with; its `micro_batch_tokens` is the size chosen there.
        measured: the process's peak up to the end of that step, in bytes; never less than the step's own.
        limit: bytes that the run may use.
        least: tokens of the longest row. most: tokens beyond which nothing is gained.

    Returns:
        The largest of doublings and halvings of the chosen size that is predicted to stay within `limit`, at
        least `least`. The chosen size itself where the prediction was right.
    """
    assert ran > 0
    assert 0 < least <= most
    at_ran = estimate_for(facts, replace(settings, micro_batch_tokens=ran))
    fixed = sum(line.bytes for line in at_ran.lines if line.when == "always")
    growing = sum(line.bytes for line in at_ran.lines if line.when == "training")
    factor = min(LARGEST_FACTOR, max(SMALLEST_FACTOR, (measured - fixed) / max(1, growing)))

    def predicted(tokens: int) -> float:
        lines = estimate_for(facts, replace(settings, micro_batch_tokens=tokens)).lines
        training = sum(line.bytes for line in lines if line.when == "training")
        return fixed + factor * training * (1 + MEASURED_BAND)

    tokens = min(max(settings.micro_batch_tokens, least), most)
    while tokens > least and predicted(tokens) > limit:
        tokens = max(least, tokens // 2)
    if tokens >= settings.micro_batch_tokens:
        while tokens < most and predicted(min(most, 2 * tokens)) <= limit:
            tokens = min(most, 2 * tokens)
    return tokens


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
