"""Measuring within the memory there is: when it runs out, the same measurement again within half the limits.

Results do not depend on the limits (see `InferenceLimits`), so that nothing but time is lost. An evaluation
that runs out of memory says nothing about the training, whose micro-batches stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from scaler_wizard.errors import EvaluationMemoryError
from scaler_wizard.inference.modes import DEFAULT_LIMITS, InferenceLimits, within_limits
from scaler_wizard.training.out_of_memory import is_out_of_memory, release_memory

T = TypeVar("T")
MAX_HALVINGS = 8
"""Of one measurement: a batch of 4,096 tokens is down to 16 then."""


@dataclass
class InferenceRoom:
    """The limits that measurements have been brought down to, kept from one to the next."""

    limits: InferenceLimits = DEFAULT_LIMITS
    on_halving: Callable[[str], None] = lambda words: None

    def run(self, work: Callable[[], T]) -> T:
        """`work()` within the limits; again within half of them when an allocation fails.

        Raises:
            EvaluationMemoryError: half of it was still too much, again and again.
        """
        for attempt in range(MAX_HALVINGS + 1):
            try:
                with within_limits(self.limits):
                    return work()
            except Exception as error:
                # Any type: what fails to allocate raises MemoryError, RuntimeError or OSError.
                if not is_out_of_memory(error):
                    raise
                found = (str(error) or type(error).__name__).splitlines()[0][:200]
            release_memory()
            if attempt < MAX_HALVINGS:
                self.limits = self.limits.halved()
                self.on_halving(
                    f"memory ran out while measuring; it is measured again in batches of at most "
                    f"{self.limits.batch_tokens:,} tokens and {self.limits.max_rows} answers at once. The "
                    f"results do not depend on that ({found})"
                )
        raise EvaluationMemoryError(
            f"measuring ran out of memory, last in batches of {self.limits.batch_tokens:,} tokens ({found})",
            "memory for the weights and one sequence",
            "shorten the context, close other programs, or take a smaller model; what was trained is in the "
            "newest checkpoint, and `scaler resume` goes on from there",
        )
