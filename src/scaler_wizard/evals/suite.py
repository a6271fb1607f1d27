"""All probes of one model on one set of held-out material, with one seed and one progress bar each.

Binds what every probe call shares; what the numbers mean for a phase is the recipe's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from scaler_wizard.data.progress import OnProgress
from scaler_wizard.evals.context_gate import ContextMeasurements
from scaler_wizard.evals.multi_key import multi_key_probe
from scaler_wizard.evals.needle import needle_probe
from scaler_wizard.evals.nll import base_window_losses, same_target_nll, short_context_nll
from scaler_wizard.evals.qa import qa_probe
from scaler_wizard.evals.recency import recency_probe
from scaler_wizard.evals.results import NeedleResult, ProbeResult, RecencyResult, ShortNllResult
from scaler_wizard.evals.sanity import sanity_probe
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.tasks import TaskRow, task_probe
from scaler_wizard.evals.tokenizing import Tokenizer
from scaler_wizard.inference.backoff import InferenceRoom
from scaler_wizard.specs.grow import EvaluationSection

Losses = list[list[float]]
QUICK_SHARE = 3
"""A quick look (ranking candidates, between training rounds) measures a third of documents and needles."""


@dataclass(frozen=True)
class Reference:
    """What a longer context must hold against: measured at the base length before anything was stretched."""

    short: ShortNllResult
    needle: NeedleResult
    recency: RecencyResult


P = ParamSpec("P")
T = TypeVar("T")


def _within_room(method: Callable[Concatenate[Suite, P], T]) -> Callable[Concatenate[Suite, P], T]:
    """Measured again within smaller limits where memory runs out."""

    @wraps(method)
    def measured(suite: Suite, *args: P.args, **kwargs: P.kwargs) -> T:
        return suite.room.run(lambda: method(suite, *args, **kwargs))

    return cast("Callable[Concatenate[Suite, P], T]", measured)


@dataclass(frozen=True)
class Suite:
    """Probes of `model`. `progress(name)` gives each probe its bar."""

    model: Any
    tokenizer: Tokenizer
    texts: Sequence[str]
    task_rows: Sequence[TaskRow]
    section: EvaluationSection
    base_length: int
    seed: int
    progress: Callable[[str], OnProgress]
    ends_turns: bool = False
    """Whether the model is meant to end its answers (it learned conversations)."""
    room: InferenceRoom = field(default_factory=InferenceRoom)
    """How much a measurement may hold at once."""

    def settings(self, length: int, *, quick: bool = False) -> ProbeSettings:
        """Probe settings at a length in tokens."""
        full = ProbeSettings.from_section(
            self.section, base_length=self.base_length, length=length, seed=self.seed
        )
        if not quick:
            return full
        return replace(
            full,
            documents=max(8, full.documents // QUICK_SHARE),
            needles_per_depth=max(8, full.needles_per_depth // QUICK_SHARE),
        )

    @_within_room
    def reference(self, *, quick: bool = False) -> Reference:
        """The model at its base length."""
        settings = self.settings(self.base_length, quick=quick)
        return Reference(
            short_context_nll(
                self.model, self.tokenizer, self.texts, settings, self.progress("loss at base length")
            ),
            needle_probe(
                self.model, self.tokenizer, self.texts, settings, self.progress("needles at base length")
            ),
            recency_probe(
                self.model, self.tokenizer, self.texts, settings, self.progress("recency at base length")
            ),
        )

    @_within_room
    def base_losses(self, length: int, *, quick: bool = False) -> Losses:
        """Losses of the targets of documents of `length` with only the base window as context."""
        settings = self.settings(length, quick=quick)
        return base_window_losses(
            self.model, self.tokenizer, self.texts, settings, self.progress("loss in the base window")
        )

    @_within_room
    def context(
        self, length: int, reference: Reference, losses: Losses | None, *, quick: bool = False, name: str = ""
    ) -> ContextMeasurements:
        """Everything a context gate looks at, at `length` tokens.

        Args:
            reference: of the model before the context was stretched.
            losses: `base_losses` of that model; this model's own when None.
        """
        settings = self.settings(length, quick=quick)
        short = self.settings(self.base_length, quick=quick)
        label = f"{name} " if name else ""
        return ContextMeasurements(
            nll=same_target_nll(
                self.model, self.tokenizer, self.texts, settings, self.progress(f"{label}loss at {length}"),
                reference=losses,
            ),
            needle_base=reference.needle,
            needle=needle_probe(
                self.model, self.tokenizer, self.texts, settings, self.progress(f"{label}needles at {length}")
            ),
            recency_base=reference.recency,
            recency=recency_probe(
                self.model, self.tokenizer, self.texts, settings, self.progress(f"{label}recency at {length}")
            ),
            short_before=reference.short,
            short_after=short_context_nll(
                self.model, self.tokenizer, self.texts, short, self.progress(f"{label}loss at base length")
            ),
        )  # fmt: skip

    @_within_room
    def skills(self, length: int) -> dict[str, ProbeResult]:
        """Tasks with exact answers, cloze questions, multi-key needles, sample texts, by probe name."""
        settings = self.settings(length)
        results: dict[str, ProbeResult] = {}
        if self.task_rows and self.section.task_rows:
            results["tasks"] = task_probe(
                self.model, self.tokenizer, self.task_rows, settings, self.progress("tasks")
            )
        results["multi_key"] = multi_key_probe(
            self.model, self.tokenizer, self.texts, settings, self.progress("multi-key needles")
        )
        results["qa"] = qa_probe(self.model, self.tokenizer, self.texts, settings, self.progress("questions"))
        prompts = [row.prompt for row in self.task_rows[:2]] or [text[:200] for text in self.texts[:2]]
        results["sanity"] = sanity_probe(
            self.model, self.tokenizer, prompts, settings, self.progress("sample texts"),
            must_end=self.ends_turns,
        )  # fmt: skip
        return results
