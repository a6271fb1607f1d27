"""The plan of an `experts` run: data, experts, encoding, routers, measurement, promotion. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from scaler_wizard.errors import SpecError
from scaler_wizard.planning.cost import evaluation_seconds
from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import Hardware
from scaler_wizard.planning.phases import DataSummary, PhaseBuilder
from scaler_wizard.planning.plan import Plan, assemble
from scaler_wizard.planning.settings import resolve
from scaler_wizard.planning.templates import SHIPPED
from scaler_wizard.specs.experts import ExpertSection, ExpertsJob
from scaler_wizard.store.learned_sizes import LearnedSize

STAGES = ("generate", "make", "preprocess", "train", "eval", "deploy")
"""Names of the phases P0 to P5, as `scaler experts STAGE` knows them."""
LEAST_PROMOTED_ROWS = 300
LEAST_PROMOTED_SEEDS = 5
SETTINGS_COMPARED = 6
"""Routed, oracle routing, one adapter for all, base, majority, and the version in service."""


def phase_of_stage(stage: str) -> str:
    """P0 of "generate", ...

    Raises:
        SpecError: no such stage.
    """
    if stage not in STAGES:
        raise SpecError(f'no stage "{stage[:40]}"', f"one of: {', '.join(STAGES)}", "name one")
    return f"P{STAGES.index(stage)}"


def trained_here(job: ExpertsJob) -> tuple[ExpertSection, ...]:
    """Experts without an adapter: this run trains them."""
    return tuple(expert for expert in job.experts if expert.adapter is None and expert.label in job.labels)


def trainings_of(job: ExpertsJob) -> tuple[int, ...]:
    """Optimiser steps of every training: experts, their plain twins, and the single adapter for all."""
    made = trained_here(job)
    twins = [expert for expert in made if expert.mode == "alora" and job.deploy.twins]
    return (*(job.steps_of(expert) for expert in (*made, *twins)), job.multitask_steps)


def make_experts_plan(
    job: ExpertsJob,
    hardware: Hardware,
    facts: ModelFacts,
    *,
    data: DataSummary | None = None,
    learned: Sequence[LearnedSize] = (),
) -> Plan:
    """Plan an `experts` job.

    Raises:
        SpecError: fewer than two experts are routed to, or a GPU that is not there.
        IncompatibleModelError: adapters on layers that the model does not have.
        DoesNotFitError: not enough memory or disk.
    """
    if len(job.labels) < 2:
        raise SpecError(
            f"{len(job.labels)} experts are routed to",
            "at least two",
            "raise a count of dataset.experts above 0",
        )
    settings = resolve(
        job, hardware, facts, SHIPPED, data_tokens=None, row_tokens=data.longest if data else None
    )
    notes = [*settings.notes, *_notes(job)]
    build = PhaseBuilder(facts, settings, job.training, data, notes, tuple(learned))
    context = facts.base_context
    row = build.row(context)
    rows, answers, labels = job.evaluation.rows, job.evaluation.answers, len(job.labels)

    def passes(count: int) -> float:
        return evaluation_seconds(facts, settings.hardware, settings.precision, count, row)

    adapter, trainings = 4 * build.trained, trainings_of(job)
    routing = sum(job.routing.experts.get(label, job.routing.rows or 1000) for label in job.labels)
    encoded = routing + labels * rows
    tried = len(job.router.ladder) - 1 + job.evaluation.seeds
    phases = (
        build.evaluation("P0", "Merge the experts' data, split without leaks", context, 1.0, 50_000_000),
        build.train(
            "P1", "Make the experts that have no adapter yet", context, row, sum(trainings),
            export_bytes=(len(trainings) + 1) * adapter,
        ),
        build.evaluation("P2", "Encode every input once", context, passes(encoded), encoded * 4096),
        build.evaluation("P3", "Train routers, choose one", context, tried * passes(routing), adapter),
        build.evaluation(
            "P4", "Measure: routing, and answers from end to end", context,
            passes(labels * (rows + SETTINGS_COMPARED * answers)),
        ),
        build.evaluation("P5", "Promote, or say why not", context, 1.0, (2 * labels + 2) * adapter),
    )  # fmt: skip
    return assemble(job, facts, settings, phases, notes)


def _notes(job: ExpertsJob) -> list[str]:
    notes = []
    if job.pace != "full":
        notes.append(f"pace {job.pace}: a trial of the stages, its numbers say nothing about the experts")
    if job.evaluation.rows < LEAST_PROMOTED_ROWS or job.routing.test_rows < LEAST_PROMOTED_ROWS:
        notes.append(f"nothing will be promoted: fewer than {LEAST_PROMOTED_ROWS} held-out rows an expert")
    if job.evaluation.seeds < LEAST_PROMOTED_SEEDS:
        notes.append(f"nothing will be promoted: fewer than {LEAST_PROMOTED_SEEDS} seeds")
    if missing := [expert.label for expert in job.experts if expert.label not in job.labels]:
        notes.append(f"left out, as dataset.experts says: {', '.join(missing)}")
    return notes
