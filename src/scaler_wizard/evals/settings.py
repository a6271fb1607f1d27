"""How much the probes measure, and where their randomness comes from. Torch-free."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal, Self

from scaler_wizard.specs.grow import EvaluationSection

NeedleStyle = Literal["auto", "generated", "documents"]
Scoring = Literal["vocabulary", "choices"]


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """One set of settings for all probes."""

    base_length: int
    """L0, the context the model was trained with, in tokens."""
    length: int
    """T, the context measured, in tokens; at least `base_length`."""
    seed: int = 0
    documents: int = 48
    """Most held-out documents of `length` tokens."""
    target_tokens: int = 32
    """Tokens at the end of each document that are compared between windows."""
    needles_per_depth: int = 24
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    style: NeedleStyle = "auto"
    """Needle documents: the generated world's, or needles in held-out text. Auto takes the generated ones
    when the tokenizer holds each of their words as one token, which is so for the embedded model."""
    scoring: Scoring = "vocabulary"
    """Most likely of the whole vocabulary (stricter), or of the possible values only."""
    keys: int = 4
    """Keys in a multi-key document."""
    updates: int = 2
    """Assignments to the asked key in a recency document."""
    questions: int = 10
    """Cloze questions."""
    task_rows: int = 200
    max_answer_tokens: int = 48
    """Most generated tokens of a task's answer."""
    position_bins: int = 16
    """Bins of NLL by position."""
    positions_per_document: int = 1024
    """Most positions scored per document for that curve."""

    def __post_init__(self) -> None:
        assert 16 <= self.base_length <= self.length
        assert self.target_tokens < self.base_length

    @classmethod
    def from_section(
        cls,
        section: EvaluationSection,
        *,
        base_length: int,
        length: int,
        seed: int,
        style: NeedleStyle = "auto",
    ) -> Self:
        """Settings from a job's evaluation section; the targets never fill more than half the base window."""
        return cls(
            base_length=base_length,
            length=length,
            seed=seed,
            documents=section.documents,
            target_tokens=min(section.target_tokens, base_length // 2),
            needles_per_depth=section.needles_per_depth,
            depths=tuple(section.depths),
            style=style,
            task_rows=section.task_rows,
        )

    def at(self, length: int) -> ProbeSettings:
        """The same settings at another length."""
        return replace(self, length=length)

    def rng(self, *path: object) -> random.Random:
        """A random generator of its own for one thing: equal seed and path give equal draws anywhere."""
        return random.Random("/".join(map(str, (self.seed, *path))))
