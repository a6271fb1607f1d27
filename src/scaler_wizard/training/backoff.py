"""Training that makes room for itself: when memory runs out, the same step again in smaller forward passes.

A step is a function of (weights, moments, its number), and a step that ran out of memory changed none of
them. So nothing is undone: the rows of the step are packed into micro-batches of half the tokens, gradient
accumulation does the rest, and the step is repeated with the same seed. Effective batch and data order stay.
Knows no recipe, no file, no phase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch

from scaler_wizard.data.batches import Step, Steps
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.errors import TrainingMemoryError
from scaler_wizard.training.forward import Objective
from scaler_wizard.training.loop import Guard, StepResult, TrainSettings, train
from scaler_wizard.training.out_of_memory import is_out_of_memory, release_memory
from scaler_wizard.training.state import TrainState

MAX_HALVINGS = 12
"""Of one attempt: 4,096 times smaller than it began is no accident of other programs any more."""


@dataclass
class MicroBatchSizes:
    """Most tokens of a forward pass, from which step on: [(0, 4096), (17, 2048)].

    The whole history is kept, so that a training that is resumed before step 17 packs its steps as it did the
    first time, and ends with the same bytes.
    """

    changes: list[tuple[int, int]]

    def at(self, step: int) -> int:
        """The size for a step (from 0)."""
        return next(tokens for first, tokens in reversed(self.changes) if first <= step)

    def change(self, step: int, tokens: int) -> None:
        """Another size from `step` on; what was planned for later steps is forgotten."""
        kept = [(first, size) for first, size in self.changes if first < step]
        self.changes = [*kept, (step, tokens)]


class RepackableSteps(Steps, Protocol):
    """Steps that can be had in larger or smaller forward passes: `Batches`, and pairs of answers."""

    micro_batch_tokens: int
    """Most tokens of a forward pass."""
    batch_tokens: int
    """Tokens of a step, on average."""

    @property
    def longest(self) -> int:
        """Tokens of the longest thing that no pass can cut."""

    def with_micro_batch_tokens(self, micro_batch_tokens: int) -> Self:
        """The same steps in other passes."""

    def rows_of(self, index: int) -> list[TokenRow]:
        """The rows of step `index`."""


@dataclass
class SizedBatches:
    """The steps of `batches`, each in micro-batches of the size that `sizes` has for it."""

    batches: RepackableSteps
    sizes: MicroBatchSizes
    _current: RepackableSteps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._current = self.batches

    def step(self, index: int) -> Step:
        """The micro-batches of step `index` (from 0)."""
        tokens = max(self.sizes.at(index), self.batches.longest)
        if self._current.micro_batch_tokens != tokens:
            self._current = self.batches.with_micro_batch_tokens(tokens)
        return self._current.step(index)

    def rows_of(self, index: int) -> list[TokenRow]:
        """The rows of step `index`, whatever the size."""
        return self.batches.rows_of(index)


@dataclass(frozen=True)
class Halving:
    """A step that ran out of memory, and what it is repeated with."""

    step: int
    """From 1, as people count."""
    tokens_before: int
    """Tokens of the step's largest micro-batch."""
    tokens: int
    passes_before: int
    passes: int
    """Forward passes of that step, before and now."""
    found: str
    """The allocator's own words."""


def train_within_memory(
    model: Any,
    batches: Steps,
    objective: Objective,
    settings: TrainSettings,
    *,
    sizes: MicroBatchSizes,
    on_halving: Callable[[Halving], None] = lambda halving: None,
    guard: Guard = lambda result: True,
    state: TrainState,
    device: torch.device | str = "cpu",
) -> Iterator[StepResult]:
    """`train`, repeating a step in halved micro-batches whenever an allocation fails in it.

    Args:
        batches: packs its steps by `sizes` (`SizedBatches`).
        sizes: is changed when memory runs out.
        on_halving: is told before the step is repeated; what must outlive the process is written there.

    Raises:
        TrainingMemoryError: a forward pass holds one row already, or `MAX_HALVINGS` were not enough.
        BreakerTrippedError: as `train`.
    """
    for _ in range(MAX_HALVINGS + 1):
        try:
            yield from train(model, batches, objective, settings, guard=guard, state=state, device=device)
            return
        except Exception as error:
            # Any type: what fails to allocate raises MemoryError, RuntimeError or OSError.
            if not is_out_of_memory(error):
                raise
            found = (str(error) or type(error).__name__).splitlines()[0][:200]
        release_memory()
        on_halving(halve(batches, sizes, state.step, found))
    raise _no_room(state.step, f"it ran out of memory {MAX_HALVINGS} times ({found})")


def halve(batches: Steps, sizes: MicroBatchSizes, step: int, found: str) -> Halving:
    """From `step` (from 0) on, forward passes of at most half the tokens of that step's largest.

    Raises:
        TrainingMemoryError: the rows of the step cannot be spread over more passes.
    """
    before = batches.step(step)
    largest = max(micro.n_tokens for micro in before.micro_batches)
    earlier = list(sizes.changes)
    sizes.change(step, max(1, largest // 2))
    after = batches.step(step)
    tokens = max(micro.n_tokens for micro in after.micro_batches)
    if tokens >= largest:
        sizes.changes = earlier
        raise _no_room(step, f"a forward pass of one row, {largest:,} tokens, does not fit ({found})")
    return Halving(step + 1, largest, tokens, len(before.micro_batches), len(after.micro_batches), found)


def _no_room(step: int, what: str) -> TrainingMemoryError:
    return TrainingMemoryError(
        f"training ran out of memory at step {step + 1}: {what}",
        "memory for one row at a time",
        "set training.activation_checkpointing: on, shorten the context or the rows, lower "
        "scaling.lora.rank, close other programs, or take a smaller model; the checkpoints are intact",
    )
