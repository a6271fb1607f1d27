"""continual: learn one file that was dropped into the inbox, and say whether the result may be used.

P0 measures the current version on the lineage's fixed questions and on what earlier files held out; a version
that answered them when it was made is not asked again. P1 learns the file in one pass, earlier files mixed
in. P2 asks the same questions again, decides by a paired test whether anything was forgotten, and exports the
next version, promoted or held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from scaler_wizard.data.chat import prepare_chat_template
from scaler_wizard.evals.gap import gap_of
from scaler_wizard.evals.promotion import Change, decide_promotion
from scaler_wizard.evals.statistics import paired_difference
from scaler_wizard.evals.validation import Answers
from scaler_wizard.models.hashing import weights_sha256
from scaler_wizard.planning.plan import PhasePlan, Plan
from scaler_wizard.recipes.continual_measure import (
    Material,
    QuickLook,
    known_answers,
    mean,
    measure_model,
    read_material,
)
from scaler_wizard.recipes.continual_parent import read_parent
from scaler_wizard.recipes.continual_result import continual_result, export_version
from scaler_wizard.recipes.session import STATE_FILE, ModelSession
from scaler_wizard.runs.context import PhaseContext, perplexity
from scaler_wizard.runs.phase import Metrics, Phase
from scaler_wizard.specs.continual import ContinualJob
from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.training.loop import StepResult
from scaler_wizard.training.memory import peak_memory_bytes

EARLIER = "held-out rows of earlier files"


class ContinualRecipe:
    """The phases of one file."""

    def __init__(self, job: ContinualJob, plan: Plan, run_dir: RunDir) -> None:
        self.job = job
        self.plan = plan
        self.run_dir = run_dir
        self.parent = read_parent(run_dir.parent(), job)
        self.done: dict[str, Metrics] = {}
        self.partial: Checkpoint | None = None
        self.trained = False
        self.session: ModelSession
        self._material: Material | None = None

    def phases(self) -> Iterator[Phase]:
        """Measure, learn, measure and export. No gates: the standing contract covers every file."""
        _, learn, _ = self.plan.phases
        yield Phase("P0", f"measure {self.parent.words}", self.measure_before)
        yield Phase("P1", f"learn {self.job.file.name}", partial(self.learn, learn))
        yield Phase("P2", "measure again, decide, export", self.measure_after)

    def restore(self, checkpoint: Checkpoint | None, done: dict[str, Metrics]) -> None:
        """Load the parent version, and what was learned of this file so far."""
        self.done = done
        self.session = ModelSession(self.job, self.plan, base=self.parent.base, adapter=self.parent.adapter)
        prepare_chat_template(self.session.tokenizer)
        # Before anything was trained a checkpoint holds no weights: they are the parent's.
        self.trained = checkpoint is not None and (checkpoint.path / STATE_FILE).is_file()
        if checkpoint is not None and self.trained:
            self.session.load(checkpoint.path)
            self.partial = checkpoint if checkpoint.kind == "step" else None

    def save(self, directory: Path) -> None:
        """Trained weights; nothing but a word before there are any."""
        if self.trained:
            self.session.save(directory)
        else:
            (directory / "untrained.txt").write_text(f"{self.parent.words}\n", encoding="utf-8")

    def material(self, context: PhaseContext) -> Material:
        """Rows and questions, read once an attempt; the same whenever they are read."""
        if self._material is None:
            limit = self.plan.phase("P1").context
            self._material = read_material(context, self.session, self.job, self.parent, limit)
            for sentence in self._material.sentences():
                context.note(sentence)
        return self._material

    # P0

    def measure_before(self, context: PhaseContext) -> Metrics:
        """What this file's effect is compared with."""
        material = self.material(context)
        known = known_answers(self.parent, material.questions)
        if known is not None:
            context.note(
                f"{self.parent.words} answered the fixed questions when it was made: not asked again"
            )
        metrics = measure_model(context, self.session, material, self.job, known)
        digest = self.parent.base_sha256 or weights_sha256(self.session.path)
        return {**metrics, "perplexity": _perplexity(metrics), "weights_sha256": digest}

    # P1

    def learn(self, phase: PhasePlan, context: PhaseContext) -> Metrics:
        """One pass over the file (or as many as asked for), a share of every step from earlier files."""
        material = self.material(context)
        training = self.session.training(
            phase, material.lesson.train, material.replay.rows, self.job.training.max_steps,
            self.job.replay.fraction,
        )  # fmt: skip
        if self.partial is not None:
            self.session.continue_training(training, self.partial.path)
            self.partial = None
        self.trained = True
        section = self.job.validation
        look = QuickLook(context, self.session, material, section.check_every, self.job.training.seed)
        tokens, seconds = 0, 0.0

        def after_step(result: StepResult) -> None:
            nonlocal tokens, seconds
            tokens, seconds = tokens + result.tokens, seconds + result.seconds
            look(result.step)

        context.later_sec = self.done["P0"]["seconds"]
        steps = self.session.run(context, training, after_step=after_step)
        lesson = material.lesson
        return {
            "steps": steps,
            "context": phase.context,
            "tokens_per_second": tokens / seconds if seconds else None,
            "rows": {
                "format": lesson.row_format, "trained": lesson.n_train, "held_out": lesson.n_held_out,
                "tokens": lesson.report.tokens, "set_aside": lesson.bad.count,
                "reasons": [[number, reason] for number, reason in lesson.bad.reasons[:50]],
                "replayed": len(material.replay.rows), "replayed_files": material.replay.files,
            },
        }  # fmt: skip

    # P2

    def measure_after(self, context: PhaseContext) -> Metrics:
        """The same questions again; promoted, or held with reasons; exported either way."""
        material = self.material(context)
        before = self.done["P0"]
        after = measure_model(context, self.session, material, self.job)
        changes = _changes(before, after)
        gap = gap_of(after["train_losses"], after["held_out_losses"])
        decision = decide_promotion(
            changes, most_fall=self.job.validation.forgetting, gap=gap,
            loss=_total(after["train_losses"]),
        )  # fmt: skip
        for reason in decision.reasons:
            context.note(f"{'promoted' if decision.promote else 'held'}: {reason}")
        for warning in decision.warnings:
            context.note(f"look at this: {warning}")
        export = export_version(
            context, self.session, self.run_dir, self.parent, Answers.from_dict(after["answers"]),
            material.questions,
        )  # fmt: skip
        earlier_loss = paired_difference(after["earlier_losses"], before["earlier_losses"])
        return {
            **after,
            "perplexity": _perplexity(after),
            "gap": asdict(gap),
            "changes": {change.name: change.as_dict() for change in changes},
            "earlier_loss_change": earlier_loss.as_dict(),
            "decision": decision.as_dict(),
            "questions": material.questions.digest,
            "export": export,
        }

    def finish(self, context: PhaseContext, done: dict[str, Metrics]) -> Metrics:
        """The record that the host publishes as a version, and that the report shows."""
        peak = peak_memory_bytes(self.session.device)
        return continual_result(self.job, self.plan, self.run_dir, self.parent, done, peak)


def _changes(before: Metrics, after: Metrics) -> list[Change]:
    """Every set of questions that was asked twice."""
    old, new = before["answers"]["right"], after["answers"]["right"]
    changes = [Change(name, tuple(old[name]), tuple(new[name])) for name in new]
    if after["earlier"]:
        changes.append(Change(EARLIER, tuple(before["earlier"]), tuple(after["earlier"])))
    return changes


def _total(losses: list[float]) -> float:
    """Finite only where every loss is."""
    return sum(losses)


def _perplexity(metrics: Metrics) -> float | None:
    """Of the file's held-out rows."""
    loss = mean(metrics["held_out_losses"])
    return None if loss is None else perplexity(loss)
