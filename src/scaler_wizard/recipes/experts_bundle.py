"""The deploy stage of `experts`: everything that answers, in one folder that the host publishes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from scaler_wizard.models.adapter_io import read_adapter_config
from scaler_wizard.planning.experts import trained_here
from scaler_wizard.recipes.experts_make import adapter_folders
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.experts import ExpertSection, ExpertsJob
from scaler_wizard.store.experts_bundle import MULTITASK, ROUTER, Bundle, BundledLora, write_bundle
from scaler_wizard.store.registry import content_hash
from scaler_wizard.store.rundir import RunDir


def export_bundle(
    job: ExpertsJob, run_dir: RunDir, router: Path | None, done: Mapping[str, Metrics], base_sha256: str
) -> Path:
    """Copy adapters and router into export/experts; what a killed attempt left of it goes first.

    Args:
        router: folder of the chosen router.
        done: metrics of the committed phases.
    """
    target = run_dir.export / "experts"
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    made = done["P1"]
    sections = {expert.label: expert for expert in job.experts}
    here = {expert.label for expert in trained_here(job)}
    dataset = f"{Path(done['P0']['folder']).name} {done['P0']['digest'][:12]}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    loras = tuple(
        _copied(target, run_dir, sections[label], folder, made, now, dataset if label in here else None)
        for label, folder in adapter_folders(job, made).items()
    )
    shutil.copytree(made["adapters"][MULTITASK]["folder"], target / MULTITASK)
    together = BundledLora(
        MULTITASK, MULTITASK, "alora", content_hash(target / MULTITASK), now, dataset, run_dir.id,
        "one adapter for everything",
    )  # fmt: skip
    if router is not None:
        shutil.copytree(router, target / ROUTER)
    bundle = Bundle(
        target, job.model.base_model, base_sha256, loras, together,
        content_hash(target / ROUTER) if router is not None else None, job.router.fallback,
        job.evaluation.max_new_tokens, job.routing.system_prompt,
    )  # fmt: skip
    write_bundle(bundle)
    return target


def _copied(
    target: Path,
    run_dir: RunDir,
    expert: ExpertSection,
    folder: Path,
    made: Metrics,
    now: str,
    dataset: str | None,
) -> BundledLora:
    place = f"experts/{expert.label}"
    shutil.copytree(folder, target / place)
    twin = made["adapters"].get(f"twins/{expert.label}")
    if twin is not None:
        shutil.copytree(twin["folder"], target / "twins" / expert.label)
    # An adapter that was brought is what its own file says, whatever the job expects of it.
    activated = getattr(read_adapter_config(folder), "alora_invocation_tokens", None) is not None
    return BundledLora(
        expert.label, place, "alora" if activated else "lora", content_hash(target / place), now, dataset,
        run_dir.id if dataset else str(folder), expert.description,
        f"twins/{expert.label}" if twin is not None else None,
        content_hash(target / "twins" / expert.label) if twin is not None else None,
    )  # fmt: skip
