"""The generate stage of `experts`: the routing set in the workspace, and its rows as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scaler_wizard.data.activation import activate
from scaler_wizard.data.routing import (
    RoutingRow,
    RoutingSet,
    merge_sources,
    read_routing,
    routing_folder,
    write_routing,
)
from scaler_wizard.data.routing_sources import RoutingSource
from scaler_wizard.data.rows import Row
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.tokens import tokenize_rows
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.experts import ExpertsJob
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace


def sources_of(job: ExpertsJob) -> list[RoutingSource]:
    """Where each expert's rows come from; nothing for an expert that names an adapter alone."""
    return [
        RoutingSource(
            expert.label, expert.label, path=Path(expert.data) if expert.data else None,
            generator=expert.generator, image_root=Path(expert.image_root) if expert.image_root else None,
            limit=expert.limit,
        )
        for expert in job.experts
        if expert.data or expert.generator
    ]  # fmt: skip


def generate(context: PhaseContext, job: ExpertsJob, run_dir: RunDir) -> Metrics:
    """Merge, split and write the routing set; the one that this phase has written before, where it is whole.

    Raises:
        DataError: see `data.routing.merge_sources`.
    """
    # Named after the run's beginning, so that a stage that is repeated finds what it wrote.
    stamp = datetime.fromtimestamp(run_dir.created(), UTC).strftime("%Y%m%d_%H%M%S")
    folder = routing_folder(Workspace(run_dir.path.parent.parent).root, f"{stamp}-{run_dir.id}"[:56])
    merged = merge_sources(sources_of(job), job.routing, [e.label for e in job.experts], _lesson_rows(job))
    made = write_routing(merged, job.routing, folder, run_dir.created())
    for label, counts in made.metadata["counts"].items():
        context.note(f"{label}: {', '.join(f'{count:,} {split}' for split, count in counts.items())} rows")
    kept = {key: made.metadata[key] for key in ("counts", "groups", "ambiguous_groups")}
    if made.metadata["ambiguous_groups"]:
        context.note(
            f"{made.metadata['ambiguous_groups']:,} groups of rows that say the same are of several experts"
        )
    return {"folder": str(folder), "digest": made.digest, **kept}


def routing_set(generated: Metrics) -> RoutingSet:
    """The set that `generate` wrote, every byte checked.

    Raises:
        DataError: it was changed.
    """
    return read_routing(Path(generated["folder"]))


def lesson(
    rows: Sequence[RoutingRow], tokenizer: Any, context: int, invocation: Sequence[int] | None
) -> Sequence[TokenRow]:
    """Rows that an adapter learns from: the answer trains, from the invocation on where there is one."""
    values = (
        Row(number, {"messages": [*(turn.as_dict() for turn in row.messages), _answer(row)]})
        for number, row in enumerate(rows, start=1)
    )
    tokens = tokenize_rows(values, "messages", tokenizer, context=context, long_rows="refuse").rows
    return activate(tokens, invocation) if invocation else tokens


def _answer(row: RoutingRow) -> dict[str, str]:
    return {"role": "assistant", "content": row.answer}


def _lesson_rows(job: ExpertsJob) -> int:
    return job.training.rows if job.pace != "test" else 0
