"""What probes return: value, n, 95% interval, baseline, chance level, seed. Torch-free."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from scaler_wizard.evals.statistics import Interval, MeanEstimate, significantly_above, wilson_interval


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Fields that every probe's result has; each probe adds its own."""

    probe: ClassVar[str]

    value: float | None
    """The number to quote; None where it is not defined."""
    n: int
    """How many independent trials or documents it rests on."""
    ci95: Interval | None
    """95% confidence interval of `value`."""
    baseline: float | None
    """What doing without would give, on the same trials; each probe says what "without" is."""
    chance: float | None
    """What guessing would give."""
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields; numbers that are not finite become None."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"probe": self.probe, **{name: _plain(value) for name, value in fields.items()}}


def _plain(value: object) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Proportion:
    """Right answers out of n."""

    correct: int
    n: int

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; None when nothing was tried."""
        return self.correct / self.n if self.n else None

    @property
    def ci95(self) -> Interval:
        """Wilson's interval."""
        return wilson_interval(self.correct, self.n)

    def above(self, chance: float) -> bool:
        """Whether the accuracy lies significantly above `chance` (exact binomial, 2.5%)."""
        return significantly_above(self.correct, self.n, chance)

    @staticmethod
    def of(answers: list[bool]) -> Proportion:
        """Count a list of right (True) and wrong (False) answers."""
        return Proportion(sum(answers), len(answers))


@dataclass(frozen=True, slots=True)
class DepthAccuracy:
    """Needles at one depth."""

    depth: float
    """Relative place of the needle, 0 is the start."""
    accuracy: Proportion


@dataclass(frozen=True, kw_only=True)
class NeedleResult(ProbeResult):
    """Needles found at a length; baseline: the same prompts cut to their last `base_length` tokens."""

    probe = "needle"

    length: int
    base_length: int
    style: str
    """Which documents: "generated" or "documents"."""
    scoring: str
    """"vocabulary": the answer must be the most likely of all tokens; "choices": of all values only."""
    pooled: Proportion
    by_depth: tuple[DepthAccuracy, ...]
    beyond: Proportion
    """Needles farther from the question than the base window reaches."""
    truncated_beyond: Proportion
    """The same needles with the prompt cut to the base window: they are not in it."""
    informative: bool
    """Whether the accuracy is significantly above chance. At the base length, a "no" means that this probe
    cannot judge a longer context for this model."""


@dataclass(frozen=True, kw_only=True)
class MultiKeyResult(ProbeResult):
    """One of several needles asked for; baseline: the same prompts cut to the base window."""

    probe = "multi_key"

    length: int
    base_length: int
    keys: int
    pooled: Proportion
    other_key: Proportion
    """Answers that were the value of another key in the same document."""
    informative: bool


@dataclass(frozen=True, kw_only=True)
class RecencyResult(ProbeResult):
    """Latest of repeated assignments; baseline: a reader who finds the key but ignores the order."""

    probe = "recency"

    length: int
    updates: int
    pooled: Proportion
    stale: Proportion
    """Answers that were an earlier value of the same key."""
    informative: bool


@dataclass(frozen=True, slots=True)
class PositionBin:
    """Mean NLL of the targets at positions start..end-1."""

    start: int
    end: int
    nll: float
    n: int


@dataclass(frozen=True, kw_only=True)
class NllResult(ProbeResult):
    """Same-target NLL: `value` is NLL at `length` minus NLL at the base window, nats per token, paired by
    document; baseline: the NLL at the base window; chance: ln(vocabulary)."""

    probe = "same_target_nll"

    length: int
    base_length: int
    difference: MeanEstimate
    recent_difference: MeanEstimate
    """The same for the last quarter of the targets."""
    nll: float
    """Mean NLL of the targets with the whole length as context."""
    perplexity: float
    perplexity_ci95: Interval
    by_position: tuple[PositionBin, ...]
    per_document: tuple[float, ...]
    per_document_base: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ShortNllResult(ProbeResult):
    """NLL within the base context, nats per token; chance: ln(vocabulary)."""

    probe = "short_context_nll"

    length: int
    perplexity: float
    perplexity_ci95: Interval
    per_document: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class QaResult(ProbeResult):
    """Cloze questions with multiple choice; baseline: the same choices without the passage."""

    probe = "qa"

    choices: int
    pooled: Proportion
    questions: tuple[Mapping[str, Any], ...]
    """Each question's last words, choices, right answer and the model's choice."""


@dataclass(frozen=True, kw_only=True)
class TaskResult(ProbeResult):
    """Exactly checked answers; baseline: always giving the most frequent reference."""

    probe = "tasks"

    pooled: Proportion
    by_task: Mapping[str, Proportion]
    ended: Proportion
    """Answers that ended with a stop token before the limit."""
    correct: tuple[bool, ...]
    """Per row, in the given order, for paired tests between models."""
    samples: tuple[Mapping[str, Any], ...]
    """A few rows with prompt, answer and reference, wrong ones first."""


@dataclass(frozen=True, kw_only=True)
class SanityResult(ProbeResult):
    """Share of generated texts that are neither empty nor stuck in repetition, and that end."""

    probe = "sanity"

    passed: bool
    texts: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class RetentionResult(ProbeResult):
    """Needle accuracy beyond the base window relative to within it, 0..1; baseline: truncating instead."""

    probe = "context_retention"

    length: int
    base_length: int
