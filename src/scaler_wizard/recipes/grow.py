"""grow: more capacity, then a longer context, one measured and gated step after another.

P0 measures the base. P1 adapts it at its own context. P2, P3, P3.2... each at most double the context: every
way to stretch the positions is scored untrained, the best is taken, and it is trained only if it does not
pass. A length that does not pass even then is undone and ends the doublings. P4 trains once more if asked,
measures everything and exports. What a phase must remember is its metrics; they travel in its checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from scaler_wizard.errors import EmptyDataError
from scaler_wizard.evals.results import ProbeResult
from scaler_wizard.evals.suite import Reference, Suite
from scaler_wizard.models.context import extension_for
from scaler_wizard.models.hashing import weights_sha256
from scaler_wizard.models.rope import RopeSetting
from scaler_wizard.planning.plan import PhasePlan, Plan
from scaler_wizard.recipes.distillation import distil
from scaler_wizard.recipes.grow_context import LongerContext, context_metrics, score_candidates
from scaler_wizard.recipes.grow_result import export_model, grow_result
from scaler_wizard.recipes.grow_session import GrowSession
from scaler_wizard.recipes.session import Training
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import GateRequest, Metrics, Phase
from scaler_wizard.safety.sentence import expand_sentence, finish_sentence
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.training.memory import peak_memory_bytes

REFERENCE: TypeAdapter[Reference] = TypeAdapter(Reference)


class GrowRecipe:
    """The phases of one `grow` job."""

    def __init__(self, job: GrowJob, plan: Plan, run_dir: RunDir) -> None:
        self.job = job
        self.plan = plan
        self.run_dir = run_dir
        self.done: dict[str, Metrics] = {}
        self.partial: Checkpoint | None = None
        self.session: GrowSession

    def phases(self) -> Iterator[Phase]:
        """P0, P1, one phase a doubling until one does not pass, P4."""
        first, adapt, *steps, last = self.plan.phases
        yield Phase(first.name, "load, hash and measure the base", self.baseline)
        yield Phase(adapt.name, f"adapt at {adapt.context} tokens", partial(self.adapt, adapt))
        before = adapt
        for step in steps:
            if not self.done.get(before.name, {}).get("passed", True):
                break
            title = f"context {before.context} -> {step.context}"
            yield Phase(
                step.name, title, partial(self.extend, step, before), partial(self.ask_extend, step, before)
            )
            before = step
        yield Phase(
            last.name,
            "final measurements and export",
            partial(self.finish_up, last),
            partial(self.ask_finish, last),
        )

    def restore(self, checkpoint: Checkpoint | None, done: dict[str, Metrics]) -> None:
        """Load the base, and what was trained so far."""
        self.done = done
        self.session = GrowSession(self.job, self.plan, self.plan.target_context)
        if checkpoint is not None:
            self.session.load(checkpoint.path)
            self.partial = checkpoint if checkpoint.kind == "step" else None

    def save(self, directory: Path) -> None:
        """Trained weights and rotary setting; also what a failed length returns to."""
        self.session.save(directory)

    # P0

    def baseline(self, context: PhaseContext) -> Metrics:
        """Everything that is claimed later is compared with this."""
        session = self.session
        extension = extension_for(session.adapted) if len(self.plan.phases) > 3 else None
        context.note(f"data: {session.dataset.words}")
        if session.measured_context < session.base_context:
            context.note(
                f"measured in windows of {session.measured_context} tokens: the held-out text holds no more"
            )
        report = session.token_report()
        if report.zero_label_pieces:
            numbers = ", ".join(map(str, report.zero_label_rows[:8]))
            context.note(
                f"{report.zero_label_pieces} rows have nothing to learn from and are left out: rows {numbers}"
            )
        suite = session.suite(context)
        with session.untrained():
            reference = suite.reference()
            metrics = self._skills(context, suite, self.plan.base_context, reference)
            if extension is not None:
                losses = suite.base_losses(self.plan.target_context)
                measured = suite.context(self.plan.target_context, reference, losses, name="base")
                metrics["at_target"] = context_metrics(measured)
        digest = weights_sha256(session.path)
        context.note(f"base weights sha256 {digest[:16]}...")
        return {**metrics, "context": self.plan.base_context, "weights_sha256": digest}

    # P1

    def adapt(self, phase: PhasePlan, context: PhaseContext) -> Metrics:
        """Learn the rows at the base context."""
        session = self.session
        is_text = session.dataset.row_format == "text"
        replay = [] if is_text else session.text_rows(phase.context)
        training = session.training(phase, session.rows_at(phase.context).rows, replay, phase.steps)
        self._take_up(training)
        steps = session.run(context, training)
        suite = session.suite(context)
        with session.evaluating():
            reference = suite.reference()
            metrics = self._skills(context, suite, phase.context, reference)
        before, after = self.done["P0"]["short_nll"], metrics["short_nll"]
        context.note(f"loss within the base context {after / before - 1:+.2%} against the base")
        return {
            **metrics,
            "context": phase.context,
            "steps": steps,
            "reference": REFERENCE.dump_python(reference),
        }

    # P2, P3...

    def ask_extend(self, phase: PhasePlan, before: PhasePlan, context: PhaseContext) -> GateRequest:
        """Score every way to stretch the positions, untrained, and ask with the number of the best."""
        ranked = self._candidates(phase, context)
        change = ranked[0]["perplexity_change"]
        return GateRequest(expand_sentence(before.context, phase.context, change), {"candidates": ranked})

    def extend(self, phase: PhasePlan, before: PhasePlan, context: PhaseContext) -> Metrics:
        """One longer context: stretched by the best method, trained only if that does not pass."""
        session = self.session
        ranked = self._candidates(phase, context)
        chosen = RopeSetting.from_dict(ranked[0]["setting"])
        length = LongerContext(session, context, phase.context, self._reference())
        steps = 0
        if self.partial is None:
            session.set_rope(chosen)
            measured, verdict = length.judge()
            if not verdict.passed and phase.steps:
                why = "; ".join(verdict.reasons)
                context.note(f"{chosen.method} does not pass untrained ({why}): training")
                measured, verdict, steps = length.train_until_passed(self._long_training(phase))
        else:  # resumed in the middle of its training: it did not pass untrained
            measured, verdict, steps = length.train_until_passed(self._long_training(phase))
        metrics = {
            **context_metrics(measured),
            "steps": steps,
            "passed": verdict.passed,
            "rope_method": chosen.method,
            "reasons": list(verdict.reasons),
            "verdict": verdict.as_dict(),
            "candidates": ranked,
            "context": phase.context,
        }
        if not verdict.passed:
            context.note(
                f"{phase.context} tokens did not pass: back to {before.context}; {'; '.join(verdict.reasons)}"
            )
            session.load(context.store.checkpoint(before.name).path)
            metrics["context"] = before.context
        return metrics

    def _candidates(self, phase: PhasePlan, context: PhaseContext) -> list[Metrics]:
        return list(
            context.once("candidates", lambda: score_candidates(self.session, phase.context, context))
        )

    def _long_training(self, phase: PhasePlan) -> Training:
        session = self.session
        short = session.rows_at(self.plan.base_context).rows
        training = session.training(phase, session.long_rows(phase.context), short, phase.steps)
        self._take_up(training)
        return training

    def _reference(self) -> Reference:
        """What P1 measured at the base length, before anything was stretched."""
        return REFERENCE.validate_python(self.done["P1"]["reference"])

    def _take_up(self, training: Training) -> None:
        """Continue a training that a step checkpoint interrupted."""
        if self.partial is not None:
            self.session.continue_training(training, self.partial.path)
            self.partial = None

    # P4

    def ask_finish(self, phase: PhasePlan, context: PhaseContext) -> GateRequest:
        """Ask before the result is written."""
        base, now = self.done["P0"]["perplexity"], list(self.done.values())[-1]["perplexity"]
        return GateRequest(finish_sentence(phase.steps, now / base - 1, merge=self.job.export.merged), {})

    def finish_up(self, phase: PhasePlan, context: PhaseContext) -> Metrics:
        """Train once more if asked, measure everything at the context reached, export and compare."""
        session = self.session
        reached = self.effective_context
        steps, distilled = 0, None
        at_reached = replace(phase, context=reached)
        section = self.job.scaling.distillation
        if phase.steps and section is not None:
            interrupted, self.partial = self.partial, None
            distilled = distil(
                context, session, section, at_reached, self.run_dir.path / "teacher", interrupted
            )
            steps = distilled["steps"]
        elif phase.steps:
            steps = session.run(context, self._long_training(at_reached))
        suite, reference = session.suite(context), self._reference()
        with session.evaluating():
            metrics = self._skills(context, suite, reached, suite.reference())
            if reached > self.plan.base_context:
                losses = suite.base_losses(reached)
                measured = suite.context(reached, reference, losses)
                metrics["at_target"] = context_metrics(measured)
        export = export_model(context, session, self.job, self.run_dir)
        metrics |= {"context": reached, "steps": steps, "export": export}
        return metrics if distilled is None else {**metrics, "distillation": distilled}

    @property
    def effective_context(self) -> int:
        """The last length that passed."""
        passed = [m["context"] for name, m in self.done.items() if m.get("passed", True) and name != "P0"]
        return max(passed, default=self.plan.base_context)

    def finish(self, context: PhaseContext, done: dict[str, Metrics]) -> Metrics:
        """The run's result: table, plots' data, export, effective context."""
        return grow_result(
            self.job,
            self.plan,
            self.run_dir,
            done,
            self.effective_context,
            peak_memory_bytes(self.session.device),
        )

    def _skills(self, context: PhaseContext, suite: Suite, length: int, reference: Reference) -> Metrics:
        """Measurements every phase has: loss, tasks, questions, multi-key needles, sample texts."""
        results: dict[str, ProbeResult] = {
            "short_context_nll": reference.short, "needle": reference.needle, "recency": reference.recency,
        }  # fmt: skip
        try:
            results |= suite.skills(length)
        except EmptyDataError as error:
            context.note(f"some probes are left out: {error.found}")
        probes = {name: context.probe(name, result.as_dict()) for name, result in results.items()}
        return {
            "perplexity": reference.short.perplexity, "short_nll": reference.short.value,
            "accuracy": results["tasks"].value if "tasks" in results else None, "probes": probes,
        }  # fmt: skip
