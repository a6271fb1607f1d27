"""The make stage of `experts`: an adapter for every expert that has none, a plain twin, one adapter for all.

One training after another, each finished adapter written and remembered, so that a kill repeats at most one.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.data.routing import RoutingRow, RoutingSet
from scaler_wizard.models.export import export_adapter
from scaler_wizard.models.feature_files import FeatureFiles
from scaler_wizard.models.rope import base_model
from scaler_wizard.models.tensor_files import Files
from scaler_wizard.models.vision import FeatureCache, ImageEncoder, is_vision_model
from scaler_wizard.models.vision_files import load_vision_processor
from scaler_wizard.planning.experts import trained_here
from scaler_wizard.planning.plan import PhasePlan, Plan
from scaler_wizard.recipes.experts_data import lesson
from scaler_wizard.recipes.session import ModelSession
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.experts import ExpertsJob
from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.store.registry import content_hash
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

WHO_FILE = "expert.json"
MULTITASK = "multitask"


@dataclass(frozen=True)
class Lesson:
    """One adapter to train."""

    name: str
    """Folder under adapters/: "experts/LABEL", "twins/LABEL" or "multitask"."""
    words: str
    rows: tuple[RoutingRow, ...]
    steps: int
    activated: bool


class AdapterSession(ModelSession):
    """The model with one adapter in training; its checkpoints say whose."""

    def __init__(self, job: ExpertsJob, plan: Plan, lesson: Lesson) -> None:
        super().__init__(job, plan, activated=lesson.activated)
        self.lesson = lesson

    def encoder(self, cache: FeatureCache, files: FeatureFiles) -> ImageEncoder | None:
        """Reads pictures that are not in the caches yet; None for a base that reads text only."""
        model = base_model(self.adapted)
        if not is_vision_model(model):
            return None
        processor = load_vision_processor(self.path, model, self.tokenizer)
        return ImageEncoder(model, processor, cache=cache, files=files)

    def files(self) -> Files:
        return {**super().files(), WHO_FILE: json.dumps({"name": self.lesson.name}).encode()}


def lessons_of(job: ExpertsJob, rows: RoutingSet) -> list[Lesson]:
    """Every adapter that the run trains, in order."""
    made = trained_here(job)
    by_label: dict[str, list[RoutingRow]] = {label: [] for label in rows.labels}
    for row in rows.lessons:
        by_label[row.label].append(row)
    found = [
        Lesson(
            f"experts/{expert.label}", f"expert {expert.label}", tuple(by_label[expert.label]),
            job.steps_of(expert), expert.mode == "alora",
        )
        for expert in made
    ]  # fmt: skip
    if job.deploy.twins:
        found += [
            Lesson(
                f"twins/{one.name.partition('/')[2]}",
                f"plain twin of {one.words}",
                one.rows,
                one.steps,
                False,
            )
            for one in found
            if one.activated
        ]
    together = tuple(row for label in rows.labels for row in by_label[label])
    everything = Lesson(MULTITASK, "one adapter for all", together, job.multitask_steps, True)
    return [*found, everything]


def make_adapters(
    context: PhaseContext, job: ExpertsJob, plan: Plan, run_dir: RunDir, rows: RoutingSet,
    partial: Checkpoint | None,
) -> Metrics:  # fmt: skip
    """Train what is missing; {adapters: {name: {folder, sha256, steps, rows, loss}}, steps}.

    Args:
        partial: a checkpoint in the middle of one training of this phase.
    """
    made: dict[str, Metrics] = {}
    # Every training loads the same base: the one adapter for all reads no picture again.
    pictures = FeatureCache()
    for one in lessons_of(job, rows):
        made[one.name] = context.once(
            f"adapter {one.name}",
            functools.partial(_make, context, job, plan, run_dir, one, pictures, _belongs(partial, one)),
        )
    return {"adapters": made, "steps": sum(found["steps"] for found in made.values())}


def _belongs(partial: Checkpoint | None, lesson: Lesson) -> Checkpoint | None:
    """The checkpoint, where it is one of this training."""
    if partial is None or not (partial.path / WHO_FILE).is_file():
        return None
    name = json.loads((partial.path / WHO_FILE).read_text(encoding="utf-8"))["name"]
    return partial if name == lesson.name else None


def _make(
    context: PhaseContext, job: ExpertsJob, plan: Plan, run_dir: RunDir, one: Lesson,
    pictures: FeatureCache, partial: Checkpoint | None,
) -> Metrics:  # fmt: skip
    context.note(f"training {one.words}: {len(one.rows):,} rows, {one.steps} steps")
    session = AdapterSession(job, plan, one)
    phase: PhasePlan = plan.phase(context.phase)
    files = FeatureFiles(Workspace(run_dir.path.parent.parent).vision_features)
    encoder = session.encoder(pictures, files)
    tokens, collate = lesson(one.rows, session.tokenizer, phase.context, session.invocation, encoder)
    if encoder is not None:
        context.note(f"pictures: {encoder.encodes:,} read, {encoder.from_disk:,} known from before")
    training = session.training(phase, tokens, (), one.steps, 0.0, collate)
    if partial is not None:
        session.load(partial.path)
        session.continue_training(training, partial.path)
    # Another adapter's losses say nothing about this one's.
    context.breaker.reset()
    losses: list[float] = []
    steps = session.run(context, training, after_step=lambda result: losses.append(result.loss))
    folder = run_dir.path / "adapters" / one.name
    write_adapter(session.adapted, folder, run_dir.id)
    return {
        "folder": str(folder), "sha256": content_hash(folder), "steps": steps, "rows": len(one.rows),
        "loss": losses[-1] if losses else None,
    }  # fmt: skip


def write_adapter(adapted: Any, folder: Path, run: str) -> None:
    """An adapter in PEFT's format; what an attempt that was killed left of it goes first."""
    if folder.exists():
        shutil.rmtree(folder)
    export_adapter(adapted, folder, title=run, provenance={"run": run})


def adapter_folders(job: ExpertsJob, made: Metrics) -> dict[str, Path]:
    """Folder of each expert's adapter by label: trained here, or as the job names it."""
    given = {e.label: Path(e.adapter) for e in job.experts if e.adapter is not None and e.label in job.labels}
    trained = {
        name.partition("/")[2]: Path(found["folder"])
        for name, found in made["adapters"].items()
        if name.startswith("experts/")
    }
    return {label: (given | trained)[label] for label in job.labels}


def changed_adapters(made: Metrics) -> Sequence[str]:
    """Names of trained adapters whose bytes are not what they were."""
    return [
        name
        for name, found in made["adapters"].items()
        if content_hash(Path(found["folder"])) != found["sha256"]
    ]
