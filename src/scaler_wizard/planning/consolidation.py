"""The plan of a `consolidate` run: measure the current version, merge its adapter, export it whole. Pure."""

from __future__ import annotations

from dataclasses import replace

from scaler_wizard.errors import DoesNotFitError
from scaler_wizard.planning.continual import row_limit
from scaler_wizard.planning.cost import evaluation_seconds
from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.fit import fits
from scaler_wizard.planning.hardware import Hardware
from scaler_wizard.planning.memory import BYTES, MemoryLine, with_line
from scaler_wizard.planning.phases import PhaseBuilder
from scaler_wizard.planning.plan import MEMORY_FRACTION, Plan, assemble
from scaler_wizard.planning.settings import resolve
from scaler_wizard.planning.templates import SHIPPED
from scaler_wizard.specs.continual import ConsolidateJob

COMPARED_LENGTHS = 2
REFERENCE_POSITIONS = 64
"""Positions of each length whose logits are kept from P0 to P1: 40 MB a length at a vocabulary of 150,000."""


def make_consolidation_plan(job: ConsolidateJob, hardware: Hardware, facts: ModelFacts) -> Plan:
    """Plan the merge of one version, from the lineage's first model: versions of one lineage have its shape.

    Raises:
        SpecError: rows longer than the model's context are asked for, or a GPU that is not there.
        DoesNotFitError: no memory for the model and its merged copy, or no disk.
    """
    context = row_limit(job, facts)
    settings = resolve(job, hardware, facts, SHIPPED, data_tokens=None, row_tokens=context)
    notes = list(settings.notes)
    build = PhaseBuilder(facts, settings, job.training, None, notes)
    seconds = evaluation_seconds(facts, settings.hardware, settings.precision, COMPARED_LENGTHS, context)
    reference = COMPARED_LENGTHS * REFERENCE_POSITIONS * facts.vocab_size * BYTES["float32"]
    whole = facts.parameters * BYTES[settings.precision]
    measure = build.evaluation("P0", "Measure the version", context, seconds, 1_000_000 + reference)
    merge = build.evaluation("P1", "Merge, compare, export", context, 3 * seconds, whole)
    copy = MemoryLine("read back", whole, "the exported files, loaded beside the merged model", 0.02)
    merge = replace(merge, memory=with_line(merge.memory, copy))
    fit = fits(merge.memory, settings.hardware, MEMORY_FRACTION)
    if not fit.ok:
        raise DoesNotFitError(
            f"merging the adapter into {facts.name}: {fit.text}",
            "room for the model and for its exported copy", "close other programs, or leave it unmerged",
        )  # fmt: skip
    return assemble(job, facts, settings, (measure, merge), notes)
