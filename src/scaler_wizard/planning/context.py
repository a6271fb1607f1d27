"""The lengths a run passes through, and what forbids them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from scaler_wizard.errors import LimitError, NotExtendableError, SpecError
from scaler_wizard.planning.facts import ModelFacts

MAX_STEP = 2


def doublings(base: int, target: int) -> tuple[int, ...]:
    """Lengths after `base` up to `target`, each twice the one before; the last may be a smaller step."""
    lengths = []
    current = base
    while current < target:
        current = min(current * MAX_STEP, target)
        lengths.append(current)
    return tuple(lengths)


def context_schedule(
    facts: ModelFacts, target: int | None, schedule: Sequence[int] | None
) -> tuple[int, ...]:
    """Lengths after the base context, in order; empty when the context stays.

    A schedule may begin with the base context itself.

    Raises:
        SpecError: a target or schedule below the base, or the two contradict each other.
        LimitError: a step of more than 2x; names the two lengths and the schedule that would work.
        NotExtendableError: the model's positions are not rotary.
    """
    base = facts.base_context
    if target is not None and target < base:
        raise SpecError(
            f"scaling.target_context {target:,} is below the model's base context of {base:,}",
            f"{base:,} or more",
            "leave it empty to keep the base context",
        )
    lengths = tuple(schedule) if schedule else doublings(base, target or base)
    if schedule and target is not None and lengths[-1] != target:
        raise SpecError(
            f"scaling.context_schedule ends at {lengths[-1]:,} and target_context is {target:,}",
            "the same length",
            "remove one of the two",
        )
    if lengths and lengths[0] < base:
        raise SpecError(
            f"scaling.context_schedule starts at {lengths[0]:,}, below the base context of {base:,}",
            f"lengths above {base:,}",
            f"use {_text(doublings(base, max(lengths[-1], base)) or (base,))}",
        )
    lengths = lengths[1:] if lengths and lengths[0] == base else lengths
    _check_steps(base, lengths)
    if lengths:
        _check_positions(facts, lengths[-1])
    return lengths


def _check_steps(base: int, lengths: Sequence[int]) -> None:
    for before, after in zip((base, *lengths), lengths, strict=False):
        if after > MAX_STEP * before:
            raise LimitError(
                f"the context schedule goes from {before:,} to {after:,} tokens, {after / before:.3g} times",
                f"at most {MAX_STEP} times per gate (the contract's guarantee)",
                f"use context_schedule: {_text(doublings(base, lengths[-1]))}",
            )


def _check_positions(facts: ModelFacts, target: int) -> None:
    if facts.has_rope:
        return
    reason = {
        "alibi": "its attention uses ALiBi biases, which have no frequencies to rescale",
        "learned": f"its positions are a learned table of {facts.base_context:,} rows, and further "
        f"rows are untrained",
    }.get(facts.positions, "its configuration shows no rotary position embeddings")
    raise NotExtendableError(
        f"the context of {facts.name} ({facts.model_type or 'unknown type'}) cannot grow to "
        f"{target:,}: {reason}",
        "a model with rotary position embeddings (RoPE)",
        "leave target_context, context_schedule and template empty, or take another model",
    )


def _text(lengths: Sequence[int]) -> str:
    return "[" + ", ".join(str(length) for length in lengths) + "]"
