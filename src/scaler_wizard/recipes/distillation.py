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

import torch
from torch import Tensor, nn

from scaler_wizard.data.batches import MicroBatch, collate
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.tokens import tokenize_rows
from scaler_wizard.errors import EmptyDataError, IncompatibleModelError
from scaler_wizard.evals.statistics import mean_estimate, paired_difference
from scaler_wizard.evals.tasks import task_probe
from scaler_wizard.losses.chunked import at_targets
from scaler_wizard.losses.distill import (
    Divergence,
    common_vocabulary,
    distillation_loss,
    divergences,
    sliced,
)
from scaler_wizard.losses.log_probs import target_log_probs
from scaler_wizard.losses.match import hidden_match_loss, initial_projection
from scaler_wizard.losses.sft import LossResult
from scaler_wizard.models.hashing import weights_sha256
from scaler_wizard.models.load import load_model
from scaler_wizard.planning.facts import ModelFacts, read_facts
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import PhasePlan
from scaler_wizard.recipes.session import DTYPES, ModelSession, Training
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.grow import DistillationSection
from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.training.attention import packed_attention
from scaler_wizard.training.forward import Objective, base_of, head_of, hidden_states, make_objective
from scaler_wizard.training.loop import Guard, StepResult, train
from scaler_wizard.training.state import TrainState, save_state
from scaler_wizard.training.teacher import (
    CacheKey,
    TeacherCache,
    cache_teacher,
    distinct_rows,
    rows_digest,
    runs,
)

Part = Literal["ce_only", "distilled"]
MARK_FILE = "distillation.json"
HELD_OUT_ROWS = 200
"""Most held-out rows that are measured."""
DISTANCE = Divergence("forward", 1.0)
"""What is reported, whatever is trained: KL(teacher || student) in nats per token, tail as one class."""


def distil(
    context: PhaseContext,
    session: ModelSession,
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
    context.note(_sentence(result))
    return result


def held_out_rows(session: ModelSession, context: int) -> list[TokenRow]:
    """Held-out rows with targets, in pieces of at most `context` tokens, at most `HELD_OUT_ROWS`.

    Raises:
        EmptyDataError: there are none.
    """
    dataset, section = session.dataset, session.job.dataset
    rows = tokenize_rows(
        dataset.held_out, dataset.row_format, session.tokenizer, context=context, long_rows=section.long_rows,
        system_prompt=section.system_prompt, bad_rows=dataset.bad, source=dataset.source,
    ).rows  # fmt: skip
    found = list(distinct_rows(rows).values())[:HELD_OUT_ROWS]
    if not found:
        raise EmptyDataError(
            "no held-out row has a token to predict", "rows to compare with and without the teacher",
            "raise dataset.holdout_fraction",
        )  # fmt: skip
    return found


def distillation_objective(
    cache: TeacherCache, section: DistillationSection, projection: nn.Parameter | None = None
) -> Objective:
    """weight x T^2 divergence + (1 - weight) x cross-entropy + hidden_weight x error of hidden states.

    Args:
        projection: [H', H], learned with the student; None leaves hidden states alone.
    """
    divergence = Divergence(section.kind, section.temperature)

    def objective(model: Any, micro: MicroBatch) -> LossResult:
        hidden, targets = at_targets(hidden_states(model, micro), micro.labels)
        cached, head = cache.lookup(micro), sliced(head_of(model), cache.key.n_tokens)
        result = distillation_loss(hidden, head, targets, cached.top, divergence, weight=section.weight)
        if projection is None or cached.hidden is None:
            return result
        match = hidden_match_loss(hidden, cached.hidden, projection)
        loss = result.loss_sum + section.hidden_weight * match.loss_sum
        return LossResult(loss, result.n_labels, {**result.metrics, **match.metrics})

    return objective


@dataclass(frozen=True)
class _Work:
    """One distillation, ready to train: everything that both trainings share."""

    context: PhaseContext
    session: ModelSession
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
        return self._measure()

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

        def save(directory: Path) -> None:
            session.save(directory)
            save_state(training.state, directory)
            (directory / MARK_FILE).write_text(json.dumps({"part": part}) + "\n", encoding="utf-8")

        def begin(guard: Guard) -> Iterator[StepResult]:
            results = train(
                session.adapted, training.batches, objective, training.settings,
                guard=lambda result: guard(_on_labels(result)), state=training.state, device=session.device,
            )  # fmt: skip
            return map(_on_labels, results)

        for _ in context.steps(begin, save):
            pass
        return {**self._measure(), "steps": training.state.step}

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

    def _measure(self) -> Metrics:
        """Loss and distance from the teacher of every held-out row (means over its targets), and tasks."""
        session, model = self.session, self.session.adapted
        head = sliced(head_of(model), self.cache.key.n_tokens)
        losses: list[float] = []
        distances: list[float] = []
        progress = self.context.progress("loss and distance from the teacher")
        with session.evaluating(), torch.no_grad():
            with packed_attention(base_of(model)):
                for rows in self._held_out_runs():
                    micro = collate(rows).to(session.device)
                    hidden, targets = at_targets(hidden_states(model, micro), micro.labels)
                    losses += _row_means(-target_log_probs(hidden, head, targets), rows)
                    distances += _row_means(
                        divergences(hidden, head, self.cache.lookup(micro).top, DISTANCE), rows
                    )
                    progress(len(losses), len(self.held_out))
            return {"nll": losses, "divergence": distances, "accuracy": self._accuracy()}

    def _held_out_runs(self) -> Iterator[Sequence[TokenRow]]:
        """Held-out rows in order, as many at a time as a micro-batch holds; a prefix needs each alone."""
        most = 0 if self.session.is_prefix else self.phase.micro_batch_tokens
        for first, last in runs(self.held_out, 0, most):
            yield self.held_out[first:last]

    def _accuracy(self) -> Metrics | None:
        session = self.session
        rows = session.task_rows() if session.job.evaluation.task_rows else []
        if not rows:
            return None
        suite = session.suite(self.context)
        found = task_probe(
            session.adapted, session.tokenizer, rows, suite.settings(session.base_context),
            self.context.progress("tasks"),
        ).as_dict()  # fmt: skip
        return {key: found[key] for key in ("value", "n", "ci95", "baseline", "seed")}

    def _teacher_losses(self) -> list[float]:
        return _row_means(-self.cache.lookup(collate(self.held_out)).target_log_probs, self.held_out)

    def report(self, start: Metrics, baseline: Metrics, distilled: Metrics) -> Metrics:
        """Both models beside each other, the start and the teacher."""
        key, section = self.cache.key, self.section
        difference = {
            name: paired_difference(distilled[name], baseline[name]).as_dict()
            for name in ("nll", "divergence")
        }
        return {
            "teacher": {
                "name": self.teacher.name, "path": self.teacher.path, "parameters": self.teacher.parameters,
                "sha256": key.teacher_sha256, "nll": mean_estimate(self._teacher_losses()).as_dict(),
            },
            "settings": {
                "kind": section.kind, "temperature": section.temperature, "weight": section.weight,
                "top_k": key.k, "hidden_weight": section.hidden_weight, "context": self.phase.context,
                "vocabulary": key.n_tokens, "cached_targets": self.cache.n_targets,
                "kept_mass": self.cache.kept_mass, "seed": self.session.job.training.seed,
            },
            "held_out": {
                name: _summary(found)
                for name, found in (("start", start), ("ce_only", baseline), ("distilled", distilled))
            },
            "distilled_minus_ce_only": difference,
            "kept": "distilled",
            "steps": distilled["steps"],
        }  # fmt: skip


_TITLES: dict[Part, str] = {
    "ce_only": "on cross-entropy alone: the baseline of the same budget",
    "distilled": "with the teacher, from the same start",
}


def _prepare(
    context: PhaseContext,
    session: ModelSession,
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


def _row_means(values: Tensor, rows: Sequence[TokenRow]) -> list[float]:
    """Mean over each row's targets of values [N] that come row after row."""
    return [float(part.double().mean()) for part in values.cpu().split([row.n_labels for row in rows])]  # type: ignore[no-untyped-call]


def _summary(found: Metrics) -> Metrics:
    return {
        "nll": mean_estimate(found["nll"]).as_dict(),
        "divergence": mean_estimate(found["divergence"]).as_dict(),
        "accuracy": found["accuracy"],
    }


def _sentence(result: Metrics) -> str:
    held, difference = result["held_out"], result["distilled_minus_ce_only"]
    loss, distance = difference["nll"], difference["divergence"]
    low, high = (value or 0.0 for value in loss["ci95"])
    verdict = "worse" if low > 0 else "better" if high < 0 else "no clear difference"
    return (
        f"distilled: held-out loss {held['distilled']['nll']['mean']:.4f} against "
        f"{held['ce_only']['nll']['mean']:.4f} with cross-entropy alone ({loss['mean']:+.4f}, {verdict}); "
        f"distance from the teacher {held['distilled']['divergence']['mean']:.4f} against "
        f"{held['ce_only']['divergence']['mean']:.4f} ({distance['mean']:+.4f})"
    )
