"""How long what is left will take, from the steps so far. Pure but for the clock it is given."""

from __future__ import annotations

import time
from collections.abc import Callable


class StepClock:
    """Seconds left of a training whose steps cost about the same.

    The first step is left out as soon as there is a second: it pays for what is built once (buffers, caches,
    kernels) and took up to ten times as long here. What happens between steps, such as checks and
    checkpoints, is counted with them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._steps = 0
        self._first = 0.0

    def eta(self, left: int) -> float:
        """Call once after every step: seconds that `left` more steps will take."""
        elapsed = self._clock() - self._started
        self._steps += 1
        if self._steps == 1:
            self._first = elapsed
            return elapsed * left
        return (elapsed - self._first) / (self._steps - 1) * left
