"""The plan of a `continual` run: measure before, learn one file, measure after and export. Pure.

Made when the file is queued, from the lineage's first model: versions of one lineage have its shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scaler_wizard.errors import SpecError
from scaler_wizard.planning.cost import evaluation_seconds
from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.hardware import Hardware
from scaler_wizard.planning.phases import DataSummary, PhaseBuilder
from scaler_wizard.planning.plan import Plan, assemble
from scaler_wizard.planning.settings import resolve
from scaler_wizard.planning.templates import SHIPPED
from scaler_wizard.specs.continual import ContinualJob
from scaler_wizard.specs.job import LineageJob
from scaler_wizard.store.learned_sizes import LearnedSize

DIFFICULTIES = 3


def make_continual_plan(
    job: ContinualJob,
    hardware: Hardware,
    facts: ModelFacts,
    *,
    data: DataSummary | None = None,
    learned: Sequence[LearnedSize] = (),
) -> Plan:
    """Plan the learning of one file.

    Args:
        data: rows and tokens of the file's training share.
        learned: micro-batch sizes that earlier runs were brought down to by lack of memory.

    Raises:
        SpecError: rows longer than the model's context are asked for, or a GPU that is not there.
        IncompatibleModelError: adapters on layers that the model does not have.
        DoesNotFitError: not enough memory or disk.
    """
    # The adapter belongs to the lineage: what a single file holds must not decide its rank.
    settings = resolve(job, hardware, facts, SHIPPED, data_tokens=None, row_tokens=row_limit(job, facts))
    notes = list(settings.notes)
    build = PhaseBuilder(facts, settings, job.training, data, notes, tuple(learned))
    context = row_limit(job, facts)
    row = build.row(context)
    measure = evaluation_seconds(
        facts, settings.hardware, settings.precision, _measured_rows(job), min(context, facts.base_context)
    )
    written = 4 * build.trained if settings.strategy != "full" else facts.weight_bytes
    phases = (
        build.evaluation("P0", "Measure before", context, measure),
        build.train("P1", "Learn the file", context, row, _steps(job, data, build.batch_tokens(row))),
        build.evaluation("P2", "Measure after, export", context, measure, 4 * build.trained + written),
    )
    return assemble(job, facts, settings, phases, notes)


def row_limit(job: LineageJob, facts: ModelFacts) -> int:
    """Longest row in tokens.

    Raises:
        SpecError: more than the model's context.
    """
    asked = job.lineage.max_length
    if asked is not None and asked > facts.base_context:
        raise SpecError(
            f"lineage.max_length is {asked:,}, and {facts.name} reads {facts.base_context:,} tokens",
            f"at most {facts.base_context:,}",
            "give the model a longer context first (recipe grow), or lower lineage.max_length",
        )
    return asked or facts.base_context


def _steps(job: ContinualJob, data: DataSummary | None, batch_tokens: int) -> int:
    """Most steps of one file; what is replayed comes on top of the file's own rows."""
    if data is None or job.training.epochs is None:
        return job.training.max_steps
    own = batch_tokens * (1 - job.replay.fraction)
    return min(job.training.max_steps, max(1, math.ceil(job.training.epochs * data.tokens_estimate / own)))


def _measured_rows(job: ContinualJob) -> int:
    """The fixed questions, and held-out rows of this file and of earlier ones."""
    return (DIFFICULTIES + 2) * job.validation.rows
