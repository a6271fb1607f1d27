"""The generate stage of `experts`: the routing set in the workspace, and its rows as tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scaler_wizard.data.activation import activate
from scaler_wizard.data.batches import Collate, collate
from scaler_wizard.data.images import read_image
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
from scaler_wizard.models.vision import ImageEncoder
from scaler_wizard.models.vision_rows import VisionRow, encode_vision_rows
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
    rows: Sequence[RoutingRow], tokenizer: Any, context: int, invocation: Sequence[int] | None,
    encoder: ImageEncoder | None = None,
) -> tuple[Sequence[TokenRow], Collate]:  # fmt: skip
    """Rows that an adapter learns from: the answer trains, from the invocation on where there is one.

    Args:
        encoder: reads the pictures of a vision-language base, each once.

    Raises:
        RowError: a row that is longer than the context, or that the chat template refuses.
        ImageError: a picture that is none.
    """
    if encoder is not None:
        seen = encode_vision_rows(_vision_rows(rows), encoder, context=context)
        return activate(seen.rows, invocation) if invocation else seen.rows, seen.collate
    values = (
        Row(number, {"messages": [*(turn.as_dict() for turn in row.messages), _answer(row)]})
        for number, row in enumerate(rows, start=1)
    )
    tokens = tokenize_rows(values, "messages", tokenizer, context=context, long_rows="refuse").rows
    return activate(tokens, invocation) if invocation else tokens, collate


def _vision_rows(rows: Sequence[RoutingRow]) -> Iterator[VisionRow]:
    for number, row in enumerate(rows, start=1):
        images = () if row.image is None else (read_image(row.image),)
        yield VisionRow(number, row.messages, row.answer, images)


def _answer(row: RoutingRow) -> dict[str, str]:
    return {"role": "assistant", "content": row.answer}


def _lesson_rows(job: ExpertsJob) -> int:
    return job.training.rows if job.pace != "test" else 0
