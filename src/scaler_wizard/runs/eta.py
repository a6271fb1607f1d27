"""How long what is left will take, from the newest steps. Pure but for the clock it is given."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW = 40
"""Steps that the mean is taken over: enough to hold what happens now and then, few enough to follow a machine
that others begin or cease to use."""


class StepClock:
    """Seconds left of a training whose steps cost about the same.

    The first step is left out as soon as there is a second: it pays for what is built once (buffers, caches,
    kernels). What happens between steps, such as checks and checkpoints, is counted with them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._ends: deque[float] = deque(maxlen=WINDOW + 1)

    def eta(self, left: int) -> float:
        """Call once after every step: seconds that `left` more steps will take."""
        self._ends.append(self._clock())
        if len(self._ends) == 1:
            return (self._ends[0] - self._started) * left
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) * left
