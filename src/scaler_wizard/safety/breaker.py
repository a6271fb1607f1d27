"""The circuit breaker: a state machine fed one optimiser step at a time that says continue, warn or stop.

Knows the numbers of past steps. Does not know the model, the optimiser or what a stop does (the run
engine skips the optimiser step and keeps the last checkpoint).

Perplexity of single batches is noisy (a tiny model: 300 +- 40 from one step to the next), so a fitted
slope above the limit means nothing by itself. The slope rule trips only when a lower confidence bound
of the slope lies above the limit, see `significance.py`. Feed it the perplexity of each step, not a
running mean: smoothing hides the noise that the bound is computed from.

Slope and spike compare with a full window of healthy steps, which a training has only later on. A jump
trips from the fourth loss on: the first ones were measured before the optimiser could do harm, and a
learning rate 1000 times too high puts three in a row more than 2 nats above them (the embedded model: 4.2 to
7 and more within two steps; tests/faults/test_divergence.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from scaler_wizard.errors import CheckpointError
from scaler_wizard.safety.significance import (
    fit_slope,
    prediction_bound,
    significant_jump,
    significant_rise,
)
from scaler_wizard.specs.events import Telegram
from scaler_wizard.specs.sections import BreakerSection

DEAD_GRADIENT = 1e-12
DEAD_STEPS = 3
"""Consecutive steps with a gradient norm below `DEAD_GRADIENT` that trip."""
JUMP_STEPS = 3
JUMP_NATS = 2.0
"""Nats (7.4 times the perplexity) that `JUMP_STEPS` losses in a row must lie above those before them; half
of it once a full window shows the noise."""
HISTORY_WINDOWS = 5
"""Windows of steps before the present one that the noise is estimated from."""

BreakerAction = Literal["continue", "warn", "stop"]


@dataclass(frozen=True)
class Verdict:
    """What the breaker says to one step."""

    action: BreakerAction
    reason: str
    """One clause in words; "" when the action is "continue"."""
    step: int
    slope: float | None = None
    """Least-squares slope of perplexity per optimiser step; None before three steps."""
    standard_error: float | None = None
    """Standard error of that slope from its residuals."""
    window: int = 0
    """Steps the slope was taken over."""

    def telegram(self, phase: str) -> Telegram | None:
        """The event to write, or None where there is nothing to say."""
        if self.action == "continue":
            return None
        return Telegram(
            phase=phase, action=self.action, reason=self.reason, step=self.step, slope=_finite(self.slope)
        )


class Breaker:
    """State of one run's breaker. `as_dict`/`from_dict` carry it through a checkpoint exactly."""

    def __init__(self, settings: BreakerSection) -> None:
        self.settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget everything, also a stop. For a new context length, where losses are not comparable."""
        self._steps: list[int] = []
        self._perplexities: list[float] = []
        self._losses: list[float] = []
        self._dead = 0
        self._tripped = ""

    @property
    def tripped(self) -> str:
        """The reason of the stop this breaker stands at, or ""."""
        return self._tripped

    def register(
        self,
        step: int,
        perplexity: float,
        accuracy: float | None = None,
        *,
        loss: float | None = None,
        grad_norm: float | None = None,
    ) -> Verdict:
        """Judge one optimiser step before it is applied.

        Args:
            step: optimiser step, rising from call to call; gaps are allowed.
            perplexity: of this step's batch.
            accuracy: task accuracy 0..1, where one was measured.
            loss: mean cross-entropy of the batch, nats per token.
            grad_norm: norm of all gradients before clipping.

        Returns:
            Once stopped, every later call says "stop" with the first reason until `reset`. In mode
            "warn" everything but a value that is not a finite number only warns.
        """
        assert not self._steps or step > self._steps[-1], f"step {step} after step {self._steps[-1]}"
        if self._tripped:
            return Verdict("stop", self._tripped, step)
        values = {"perplexity": perplexity, "accuracy": accuracy, "loss": loss, "gradient norm": grad_norm}
        broken = _not_a_measurement(values)
        if broken:
            self._tripped = broken
            return Verdict("stop", broken, step)
        self._dead = self._dead + 1 if grad_norm is not None and grad_norm < DEAD_GRADIENT else 0
        spike = self._loss_spike(loss) or self._jump(loss)
        self._remember(step, perplexity, loss)
        slope, error, count = self._slope()
        reason = self._gradient(grad_norm) or spike or self._rise(slope) or self._accuracy(accuracy)
        if not reason:
            return Verdict("continue", "", step, slope, error, count)
        if self.settings.mode == "stop":
            self._tripped = reason
        return Verdict(self.settings.mode, reason, step, slope, error, count)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready state (settings excluded: they belong to the job)."""
        return {
            "steps": list(self._steps),
            "perplexities": list(self._perplexities),
            "losses": list(self._losses),
            "dead": self._dead,
            "tripped": self._tripped,
        }

    @classmethod
    def from_dict(cls, settings: BreakerSection, state: object) -> Breaker:
        """The breaker that `as_dict` was taken from; it goes on with equal verdicts.

        Raises:
            CheckpointError: the state is not one that `as_dict` writes.
        """
        breaker = cls(settings)
        steps, perplexities, losses, dead, tripped = _read_state(state)
        keep = settings.window * (HISTORY_WINDOWS + 1)
        breaker._steps, breaker._perplexities = steps[-keep:], perplexities[-keep:]
        breaker._losses = losses[-settings.window :]
        breaker._dead, breaker._tripped = dead, tripped
        return breaker

    def _remember(self, step: int, perplexity: float, loss: float | None) -> None:
        keep = self.settings.window * (HISTORY_WINDOWS + 1)
        self._steps = [*self._steps, step][-keep:]
        self._perplexities = [*self._perplexities, perplexity][-keep:]
        if loss is not None:
            self._losses = [*self._losses, loss][-self.settings.window :]

    def _slope(self) -> tuple[float | None, float | None, int]:
        window = self.settings.window
        steps, values = self._steps[-window:], self._perplexities[-window:]
        if len(steps) < 3:
            return None, None, len(steps)
        slope, error = fit_slope(steps, values)
        return slope, error, len(steps)

    def _rise(self, slope: float | None) -> str:
        limit, window = self.settings.max_perplexity_slope, self.settings.window
        if slope is None or slope <= limit or len(self._steps) < window:
            return ""
        if not significant_rise(self._steps, self._perplexities, window, limit):
            return ""
        return f"perplexity rises {slope:.3g} per step over {window} steps (limit {limit:g})"

    def _loss_spike(self, loss: float | None) -> str:
        """`loss` against the full window before it."""
        before, window = self._losses, self.settings.window
        if loss is None or len(before) < window:
            return ""
        mean = math.fsum(before) / window
        if loss <= self.settings.loss_spike * mean or loss <= prediction_bound(before):
            return ""
        return f"loss spike: {loss:.3g} after a mean of {mean:.3g} over {window} steps"

    def _jump(self, loss: float | None) -> str:
        """The latest losses against those before them, also while there is no full window."""
        if loss is None:
            return ""
        losses = [*self._losses, loss]
        if not significant_jump(losses, JUMP_STEPS, JUMP_NATS, self.settings.window + 1):
            return ""
        before = losses[:-JUMP_STEPS]
        mean = math.fsum(before) / len(before)
        return f"loss jumped to {loss:.3g} after a mean of {mean:.3g} over {len(before)} steps"

    def _gradient(self, grad_norm: float | None) -> str:
        if grad_norm is not None and grad_norm > self.settings.max_grad_norm:
            return f"gradient explosion: norm {grad_norm:.3g} (limit {self.settings.max_grad_norm:g})"
        if self._dead >= DEAD_STEPS:
            return f"dead gradient: norm below {DEAD_GRADIENT:g} for {self._dead} steps"
        return ""

    def _accuracy(self, accuracy: float | None) -> str:
        if accuracy is None or accuracy >= self.settings.min_accuracy:
            return ""
        return f"accuracy {accuracy:.3g} is below {self.settings.min_accuracy:g}"


def _not_a_measurement(values: dict[str, float | None]) -> str:
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            return f"{name} is {'not a number' if math.isnan(value) else 'infinite'}"
    perplexity = values["perplexity"]
    assert perplexity is not None
    return "" if perplexity > 0 else f"perplexity is {perplexity:g}, which no model can have"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _read_state(state: object) -> tuple[list[int], list[float], list[float], int, str]:
    if not isinstance(state, dict):
        raise _bad_state("not a mapping")
    steps, dead, tripped = state.get("steps"), state.get("dead"), state.get("tripped")
    if not (isinstance(steps, list) and all(type(step) is int for step in steps)):
        raise _bad_state("steps")
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise _bad_state("steps do not rise")
    perplexities = _numbers(state, "perplexities")
    if len(perplexities) != len(steps) or any(value <= 0 for value in perplexities):
        raise _bad_state("perplexities")
    if type(dead) is not int or dead < 0 or not isinstance(tripped, str):
        raise _bad_state("dead or tripped")
    return steps, perplexities, _numbers(state, "losses"), dead, tripped


def _numbers(state: dict[Any, Any], key: str) -> list[float]:
    values = state.get(key)
    if not isinstance(values, list):
        raise _bad_state(key)
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise _bad_state(key)
    return [float(value) for value in values]


def _bad_state(what: str) -> CheckpointError:
    return CheckpointError(
        f"the breaker state in the checkpoint is damaged ({what})",
        "the state that the run wrote",
        "roll back to the checkpoint before it",
    )
