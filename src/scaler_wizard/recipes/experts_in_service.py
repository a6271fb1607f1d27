"""The eval stage of `experts`, other half: what the version in service says to the same held-out inputs.

Its adapters and its router are loaded beside the new ones, on the base that is in memory already. What it
learned from may hold some of these rows, which speaks for it and never against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from scaler_wizard.data.routing import RoutingRow
from scaler_wizard.errors import CheckpointError, DataError, IncompatibleModelError, ModelError
from scaler_wizard.evals.worth import InService
from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.routers.files import load_router
from scaler_wizard.inference.experts.served import Served, add_bundle
from scaler_wizard.models.hashing import weights_sha256
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.recipes.experts_measure import answer_rows, is_right
from scaler_wizard.recipes.experts_routers import content_of
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.experts import ExpertsJob
from scaler_wizard.store.experts_bundle import MULTITASK, Bundle, read_bundle
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.version_files import WEIGHTS, version_name
from scaler_wizard.store.workspace import Workspace


def followed(run_dir: RunDir) -> int | None:
    """Number of the version that is in service as this attempt begins; None before the first."""
    number = (run_dir.parent() or {}).get("version")
    return number if isinstance(number, int) else None


def measure_in_service(
    context: PhaseContext, served: Served, job: ExpertsJob, run_dir: RunDir, rows: Sequence[RoutingRow]
) -> InService | None:
    """The version in service on the rows that the new one was asked; None where there is none yet.

    One that cannot be asked (another base, damaged files) is no reason to fail: it stays in service.
    """
    number = followed(run_dir)
    if number is None:
        return None
    version = version_name(number)
    models = Workspace(run_dir.path.parent.parent).models
    try:
        bundle = read_bundle(models / job.deploy.name / version / WEIGHTS["experts"])
        if bundle.base_sha256 != weights_sha256(resolve_model(job.model.base_model, job.model.revision)):
            raise IncompatibleModelError("its base has other weights than the base of this job")
        lost = tuple(label for label in bundle.labels if label not in job.labels)
        found = context.once(
            f"answers of {version}", partial(_answers, context, served, job, bundle, rows, version)
        )
    except (ModelError, CheckpointError, DataError) as error:
        return InService(version, (), refused=error.found)
    return InService(version, tuple(found["right"]), lost)


def decision_at_deploy(measured: Metrics, now: int | None) -> Metrics:
    """P4's decision; held where another version went into service after the measurement.

    Args:
        now: number of the version in service as this attempt began.
    """
    decision: Metrics = measured["decision"]
    before = (measured.get("in_service") or {}).get("version")
    stands = None if now is None else version_name(now)
    if stands is None or stands == before:
        return decision
    moved = f"{stands} is in service now, and {before or 'nothing'} was when this was measured"
    reasons = decision["reasons"] if not decision["promote"] else []
    return {**decision, "promote": False, "reasons": [*reasons, moved]}


def _answers(
    context: PhaseContext, served: Served, job: ExpertsJob, bundle: Bundle, rows: Sequence[RoutingRow],
    version: str,
) -> Metrics:  # fmt: skip
    before = replace(served, bank=Bank(served.bank.model), system_prompt=bundle.system_prompt)
    add_bundle(before, bundle)
    router = load_router(bundle.router, before.bank) if bundle.router is not None else None
    answers = answer_rows(
        before, router, [content_of(before, row) for row in rows],
        min(bundle.max_new_tokens, job.evaluation.max_new_tokens), [None] * len(rows),
        MULTITASK if bundle.fallback == "multitask" else None, context.progress(f"answers: {version}"),
    )  # fmt: skip
    texts = [before.text(answer) for answer in answers]
    return {"right": [is_right(text, row.answer) for text, row in zip(texts, rows, strict=True)]}
