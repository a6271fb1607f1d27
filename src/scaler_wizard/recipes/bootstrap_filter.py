"""The optional safety filter of the sixth stage: asks it once about every row that would be trained on.

The filter's model is loaded for this and gone before training. Every decision stands in the row's record, and
in a file as well, so that a resumed stage asks nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from scaler_wizard.errors import SafetyFilterError
from scaler_wizard.inference.safety_filter import (
    EndpointFilter,
    Exchange,
    FilterDecision,
    SafetyFilter,
    load_filter,
)
from scaler_wizard.recipes.bootstrap_critique import Critiqued
from scaler_wizard.recipes.bootstrap_lab import Lab
from scaler_wizard.recipes.session import DTYPES
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.specs.constitution_section import SafetyFilterSection
from scaler_wizard.store.durable import write_atomic

REJECTED = "unsafe, says the safety filter"


def filtered(lab: Lab, context: PhaseContext, where: str, rows: Sequence[Critiqued]) -> list[Critiqued]:
    """The rows with the filter's word on the answer that each would teach; all as they are where it is off.

    Raises:
        SafetyFilterError: it does not answer. ModelError: it cannot be loaded.
    """
    section = lab.job.constitution.safety_filter
    if not section.is_on:
        return list(rows)
    places = [at for at, row in enumerate(rows) if row.kept]
    decisions = _decisions(lab, where, section, [(rows[at].request, rows[at].chosen) for at in places])
    told = list(rows)
    for at, decision in zip(places, decisions, strict=True):
        told[at] = judged_row(rows[at], decision, reject=section.unsafe == "reject")
    rejected = sum(not told[at].kept for at in places)
    context.note(f"the safety filter saw {len(places):,} answers and rejected {rejected:,}")
    return told


def judged_row(row: Critiqued, decision: FilterDecision, *, reject: bool) -> Critiqued:
    """The row with the decision in its record; not kept where it is not called safe and that is asked for."""
    row = replace(row, filtered=decision.as_dict())
    return row if decision.safe or not reject else replace(row, kept=False, reason=REJECTED)


def open_filter(lab: Lab, section: SafetyFilterSection) -> SafetyFilter:
    """The filter that a job names."""
    if section.endpoint is not None:
        return EndpointFilter(section.endpoint, section.model or "", section.timeout_sec)
    assert section.model is not None
    return load_filter(section.model, dtype=DTYPES[lab.plan.precision], device=lab.plan.device)


def _decisions(
    lab: Lab, where: str, section: SafetyFilterSection, exchanges: Sequence[Exchange]
) -> list[FilterDecision]:
    """What was decided before the run was interrupted, or the filter's word now."""
    path = lab.directory(where) / "safety-filter.json"
    asked = [section.model, section.endpoint, *map(list, exchanges)]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["sha256"] == digest:
            return [
                FilterDecision(safe, tuple(named), str(reply)) for safe, named, reply in stored["decisions"]
            ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # none yet, or damaged: it is asked again
    found = open_filter(lab, section).judge(exchanges)
    if len(found) != len(exchanges):
        raise SafetyFilterError(f"{len(found)} decisions on {len(exchanges)} answers", "one for each")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [[one.safe, list(one.categories), one.reply] for one in found]
    write_atomic(path, json.dumps({"sha256": digest, "decisions": rows}) + "\n")
    return found
