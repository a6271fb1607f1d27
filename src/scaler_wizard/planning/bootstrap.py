"""The plan of a `bootstrap` run: measure the base, six stages that make data, train and measure, export.
Pure.

Each stage is planned once; a stage whose gate is not met is tried up to twice more, which the notes say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from scaler_wizard.errors import SpecError
from scaler_wizard.planning.cost import evaluation_seconds
from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import Hardware
from scaler_wizard.planning.memory import BYTES
from scaler_wizard.planning.phases import PhaseBuilder, PhasePlan
from scaler_wizard.planning.plan import Plan, assemble
from scaler_wizard.planning.settings import resolve
from scaler_wizard.planning.templates import SHIPPED
from scaler_wizard.specs.bootstrap import BootstrapJob
from scaler_wizard.store.learned_sizes import LearnedSize

SKILLS = ("explicit", "implicit", "make", "evaluate", "revise")
SHORT_ROW = 128
"""Tokens of a question with its answer, where nothing is known of them: what generation is counted with."""


def make_bootstrap_plan(
    job: BootstrapJob, hardware: Hardware, facts: ModelFacts, *, learned: Sequence[LearnedSize] = ()
) -> Plan:
    """Plan the stages.

    Raises:
        SpecError: a strategy whose result cannot be merged, a longer context, or a GPU that is not there.
        IncompatibleModelError: adapters on layers that the model does not have.
        DoesNotFitError: not enough memory or disk.
    """
    settings = resolve(job, hardware, facts, SHIPPED, data_tokens=None, row_tokens=facts.base_context)
    if settings.strategy not in ("lora", "full"):
        raise SpecError(
            f"scaling.strategy is {settings.strategy}, whose result cannot be merged into the model",
            "lora or full: each stage is merged", "set scaling.strategy: lora",
        )  # fmt: skip
    if job.scaling.target_context not in (None, facts.base_context):
        raise SpecError(
            f"scaling.target_context is {job.scaling.target_context:,} in a bootstrap",
            "the model's own context", "grow the model first (recipe grow), then bootstrap the result",
        )  # fmt: skip
    notes = [*settings.notes, "a stage that does not pass is tried twice more; that time is not in the plan"]
    build = PhaseBuilder(facts, settings, job.training, None, notes, tuple(learned))
    context = facts.base_context
    row = build.row(context)
    whole = facts.parameters * BYTES[settings.precision]
    count = job.stages.last

    def answering(answers: float) -> float:
        # Generating reads and writes a row token by token: about as many forward passes as scoring it twice.
        return 2 * evaluation_seconds(
            facts, settings.hardware, settings.precision, math.ceil(answers), min(SHORT_ROW, context)
        )

    base = build.evaluation("P0", "Measure the base", context, answering(_assessment(job)))
    phases: list[PhasePlan] = [base]
    for number, skill in enumerate(SKILLS[:count], start=1):
        section = getattr(job.stages, skill)
        made = answering(
            section.prompts * (1 + job.sampling.samples) + (number + 1) * job.evaluation.questions
        )
        phase = build.train(
            f"P{number}", f"Stage {number}: {skill}", context, row, section.steps or job.training.max_steps,
            gate="adapt", evaluation_seconds=made, export_bytes=whole,
        )  # fmt: skip
        phases.append(phase)
    if count > len(SKILLS):
        phases.append(_constitution(job, build, context, row, answering, whole))
    last = build.evaluation("P7", "Export", context, answering(1), 2 * whole)
    return assemble(job, facts, settings, (*phases, last), notes)


def _constitution(
    job: BootstrapJob, build: PhaseBuilder, context: int, row: int, answering: Callable[[float], float],
    export_bytes: int,
) -> PhasePlan:  # fmt: skip
    """Stage 6: every answer is judged by some principles, revised and judged again; three kinds of request
    measure, twice."""
    section = job.constitution
    judged = section.prompts * (1 + 3 * section.principles_per_answer)
    asked = judged + 6 * section.requests + len(SKILLS) * job.evaluation.questions
    steps = section.preference.warmup_steps + (section.preference.steps or job.training.max_steps)
    return build.train(
        f"P{len(SKILLS) + 1}", "Stage 6: a constitution", context, row, steps, gate="adapt",
        evaluation_seconds=answering(asked), export_bytes=export_bytes,
    )  # fmt: skip


def _assessment(job: BootstrapJob) -> float:
    """Answers of stage 0: every skill asked in the template, and 120 of each in three plain ways."""
    questions = job.evaluation.questions
    return (len(SKILLS) + 1) * questions + 3 * len(SKILLS) * min(questions, 120) + job.sampling.base_texts
