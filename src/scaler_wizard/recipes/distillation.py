"""Distillation inside a phase: the same steps twice from the same start, without and with the teacher.

First the baseline, on cross-entropy alone; then, after the start is restored, the distilled model, which is
what the session holds at the end. Both are measured on the same held-out rows, paired, and reported beside
each other. The teacher is asked once, before both, and is out of memory by then. Knows no gates, no exports.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from torch import nn

from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.losses.distill import (
    common_vocabulary,
)
from scaler_wizard.losses.match import initial_projection
from scaler_wizard.models.hashing import weights_sha256
from scaler_wizard.models.load import load_model
from scaler_wizard.models.tensor_files import Files
from scaler_wizard.planning.facts import ModelFacts, read_facts
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import PhasePlan
from scaler_wizard.recipes.distillation_report import HeldOut, comparison, held_out_rows, sentence
from scaler_wizard.recipes.grow_session import GrowSession
from scaler_wizard.recipes.session import DTYPES, Training
from scaler_wizard.recipes.within_memory import steps_within_memory
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.sections import DistillationSection
from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.training.distillation import distillation_objective
from scaler_wizard.training.forward import Objective, base_of, head_of, make_objective
from scaler_wizard.training.loop import Guard, StepResult
from scaler_wizard.training.state import TrainState, state_files
from scaler_wizard.training.teacher import (
    CacheKey,
    TeacherCache,
    cache_teacher,
    rows_digest,
)

Part = Literal["ce_only", "distilled"]
MARK_FILE = "distillation.json"


def distil(
    context: PhaseContext,
    session: GrowSession,
    section: DistillationSection,
    phase: PhasePlan,
    cache_root: Path,
    partial: Checkpoint | None = None,
) -> Metrics:
    """Train `phase.steps` steps with the teacher, and as many without from the same start; report both.

    Args:
        session: as the newest committed phase left it; holds the distilled model afterwards.
        phase: its context is the longest to train at; a teacher with a shorter one lowers it.
        cache_root: directory for the teacher's distributions, which are reused as long as teacher, rows and
            top_k stay the same.
        partial: step checkpoint of this phase that the session was restored from.

    Returns:
        teacher, settings, held_out (start, ce_only, distilled: loss, divergence and accuracy with n and
        interval), distilled_minus_ce_only (paired), kept, steps.

    Raises:
        IncompatibleModelError: the teacher has other tokens. EmptyDataError: nothing to hold out.
        BreakerTrippedError, LimitError, InterruptedPhase: see `PhaseContext.steps`.
    """
    work = _prepare(context, session, section, phase, cache_root)
    resumed = _part_of(partial)
    start = context.once("distillation_start", lambda: work.measured_start())
    baseline = context.once(
        "distillation_ce_only", lambda: work.run("ce_only", partial if resumed == "ce_only" else None)
    )
    distilled = work.run("distilled", partial if resumed == "distilled" else None)
    result = work.report(start, baseline, distilled)
    context.probe("distillation", result)
    context.note(sentence(result))
    return result


@dataclass(frozen=True)
class _Work:
    """One distillation, ready to train: everything that both trainings share."""

    context: PhaseContext
    session: GrowSession
    section: DistillationSection
    phase: PhasePlan
    teacher: ModelFacts
    rows: Sequence[TokenRow]
    replay: Sequence[TokenRow]
    held_out: Sequence[TokenRow]
    cache: TeacherCache
    start: Checkpoint

    def measured_start(self) -> Metrics:
        """The model before this phase."""
        self.session.load(self.start.path)
        return self._held_out().measure()

    def run(self, part: Part, resumed: Checkpoint | None) -> Metrics:
        """Train one of the two from the start (or go on where `resumed` left it), and measure it."""
        session, context = self.session, self.context
        checkpoint = resumed or self.start
        session.load(context.store.verify(checkpoint).path)
        training, objective = self._training(part)
        if resumed is not None:
            session.continue_training(training, resumed.path)
        context.note(f"{training.settings.total_steps} steps {_TITLES[part]}")
        # The other training's losses, of another objective, say nothing about this one's.
        context.breaker.reset()

        def capture() -> Files:
            mark = json.dumps({"part": part}).encode() + b"\n"
            return {**session.files(), **state_files(training.state), MARK_FILE: mark}

        def begin(guard: Guard) -> Iterator[StepResult]:
            results = steps_within_memory(
                session, context, training, objective, lambda result: guard(_on_labels(result)), part
            )
            return map(_on_labels, results)

        for _ in context.steps(begin, capture):
            pass
        return {**self._held_out().measure(), "steps": training.state.step}

    def _training(self, part: Part) -> tuple[Training, Objective]:
        training = self.session.training(self.phase, self.rows, self.replay, self.phase.steps)
        if part == "ce_only":
            return training, make_objective("sft")
        if not self.section.hidden_weight:
            return training, distillation_objective(self.cache, self.section)
        width = base_of(self.session.adapted).get_output_embeddings().weight.shape[1]
        first = initial_projection(width, self.cache.hidden_size, self.session.job.training.seed)
        projection = nn.Parameter(first.to(self.session.device))
        settings = training.settings
        named = chain(self.session.adapted.named_parameters(), [("distillation_projection", projection)])
        training.state = TrainState(
            named, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
        )
        return training, distillation_objective(self.cache, self.section, projection)

    def _held_out(self) -> HeldOut:
        return HeldOut(self.context, self.session, self.held_out, self.cache, self.phase.micro_batch_tokens)

    def report(self, start: Metrics, baseline: Metrics, distilled: Metrics) -> Metrics:
        """What was done, and both models beside each other."""
        key, section, cache = self.cache.key, self.section, self.cache
        compared = comparison(self._held_out(), start, baseline, distilled)
        return {
            "teacher": {
                "name": self.teacher.name, "path": self.teacher.path, "parameters": self.teacher.parameters,
                "sha256": key.teacher_sha256, "nll": compared.pop("teacher_nll"),
            },
            "settings": {
                "kind": section.kind, "temperature": section.temperature, "weight": section.weight,
                "top_k": key.k, "hidden_weight": section.hidden_weight, "context": self.phase.context,
                "vocabulary": key.n_tokens, "cached_targets": cache.n_targets, "kept_mass": cache.kept_mass,
                "seed": self.session.job.training.seed,
            },
            **compared,
        }  # fmt: skip


_TITLES: dict[Part, str] = {
    "ce_only": "on cross-entropy alone: the baseline of the same budget",
    "distilled": "with the teacher, from the same start",
}


def _prepare(
    context: PhaseContext,
    session: GrowSession,
    section: DistillationSection,
    phase: PhasePlan,
    cache_root: Path,
) -> _Work:
    """Rows, and the teacher's word on all of them."""
    trusted = session.job.model.trust_remote_code
    facts = read_facts(resolve_model(section.teacher), allow_remote_code=trusted)
    length = min(phase.context, facts.max_context)
    if length < phase.context:
        context.note(f"the teacher reads {length:,} tokens: distillation trains at that length")
    if length > session.base_context:
        rows: Sequence[TokenRow] = session.long_rows(length)
        replay: Sequence[TokenRow] = session.rows_at(session.base_context).rows
    else:
        rows = session.rows_at(length).rows
        replay = [] if session.dataset.row_format == "text" else session.text_rows(length)
    phase, held_out = replace(phase, context=length), held_out_rows(session, length)
    training = session.training(phase, rows, replay, phase.steps)
    # Only what the steps will read: a few hundred steps see a small part of a large dataset.
    seen = chain.from_iterable(map(training.batches.rows_of, range(training.settings.total_steps)))
    everything = [*seen, *held_out]
    student_rows = head_of(session.adapted).weight.shape[0]
    n_tokens = common_vocabulary(student_rows, facts.vocab_size, len(session.tokenizer))
    weights = weights_sha256(Path(facts.path))
    key = CacheKey(
        teacher_sha256=hashlib.sha256(f"{weights} {facts.config_sha256}".encode()).hexdigest(),
        rows_sha256=rows_digest(everything), k=min(section.top_k, n_tokens), n_tokens=n_tokens,
        precision=session.plan.precision, keep_hidden=section.hidden_weight > 0,
    )  # fmt: skip

    def load() -> Any:
        loaded = load_model(
            section.teacher, dtype=DTYPES[session.plan.precision], device=session.plan.device,
            trust_remote_code=trusted,
        )  # fmt: skip
        check_same_tokens(session.tokenizer, loaded.tokenizer)
        return loaded.model

    longest = max(len(row.ids) for row in everything)
    cache = cache_teacher(
        cache_root, key, everything, load,
        micro_batch_tokens=max(longest, phase.micro_batch_tokens),
        on_progress=context.progress("asking the teacher"),
    )  # fmt: skip
    return _Work(
        context, session, section, phase, facts, rows, replay, held_out, cache, context.store.chain()[-1],
    )  # fmt: skip


def check_same_tokens(student: Any, teacher: Any) -> None:
    """Refuse a teacher to which the student's token ids mean something else; it may have more tokens.

    Raises:
        IncompatibleModelError: names the first token that differs.
    """
    theirs = teacher.get_vocab()
    for token, number in sorted(student.get_vocab().items(), key=lambda item: item[1]):
        if theirs.get(token) != number:
            where = f"number {theirs[token]:,}" if token in theirs else "no token"
            raise IncompatibleModelError(
                f"token {number:,} of the student, {token!r}, is {where} of the teacher",
                "a teacher of the student's family, with the same tokenizer",
                "choose another teacher in scaling.distillation, or leave vocabulary growth out",
            )


def _part_of(partial: Checkpoint | None) -> Part | None:
    """Which of the two trainings a step checkpoint belongs to."""
    path = partial.path / MARK_FILE if partial is not None else None
    if path is None or not path.is_file():
        return None
    part = json.loads(path.read_text(encoding="utf-8")).get("part")
    return part if part in ("ce_only", "distilled") else None


def _on_labels(result: StepResult) -> StepResult:
    """The step with the loss on its labels alone: perplexity, shown and watched, means the same in both."""
    return replace(result, loss=result.metrics.get("cross_entropy", result.loss))
