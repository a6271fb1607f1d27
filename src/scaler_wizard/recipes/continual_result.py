"""The end of a file's training: the exported version, and the record that publishing and the report read."""

from __future__ import annotations

import shutil
from typing import Any

from scaler_wizard.evals.statistics import mean_estimate
from scaler_wizard.evals.validation import Answers, ValidationSet, write_answers
from scaler_wizard.models.export import export_adapter, export_merged
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.continual_parent import Parent
from scaler_wizard.recipes.grow_result import comparison_row, memory_record
from scaler_wizard.recipes.session import ModelSession
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.continual import ContinualJob
from scaler_wizard.specs.job import LineageJob
from scaler_wizard.store.rundir import RunDir

NO_BASELINE: dict[str, Any] = {"chance": None, "baseline": None}
TITLES = {"easy": "easy questions", "medium": "medium questions", "hard": "hard questions"}


def export_version(
    context: PhaseContext, session: ModelSession, run_dir: RunDir, parent: Parent, answers: Answers,
    questions: ValidationSet,
) -> Metrics:  # fmt: skip
    """Write the adapter (lora) or the whole model (full), with its answers beside its weights."""
    kind = "full" if session.plan.strategy == "full" else "adapter"
    target = run_dir.export / kind
    if target.exists():  # an attempt that was killed before its checkpoint
        shutil.rmtree(target)
    provenance = {"run": run_dir.id, "trained from": parent.words, "strategy": session.plan.strategy}
    if kind == "full":
        report = export_merged(
            session.adapted, session.tokenizer, target, title=run_dir.id, provenance=provenance
        )
    else:
        report = export_adapter(session.adapted, target, title=run_dir.id, provenance=provenance)
        if session.vocabulary is not None:
            session.tokenizer.save_pretrained(target)
    write_answers(target, answers, questions)
    for sentence in report.sentences():
        context.note(f"{kind}: {sentence}")
    return {kind: str(target)}


def continual_result(
    job: ContinualJob, plan: Plan, run_dir: RunDir, parent: Parent, done: dict[str, Metrics], peak: int
) -> Metrics:
    """The run's record; its shape is documented in docs/continual.md."""
    before, learned, after = done["P0"], done["P1"], done["P2"]
    decision, rows = after["decision"], learned["rows"]
    metrics = {
        "accuracy": after["changes"],
        "gap": after["gap"],
        "earlier_loss_change": after["earlier_loss_change"],
        "rows": rows,
        "tokens_per_second": learned["tokens_per_second"],
        "steps": learned["steps"],
        "warnings": decision["warnings"],
        "questions": after["questions"],
        "seed": job.training.seed,
    }
    return {
        "run": run_dir.id,
        "recipe": "continual",
        "status": "completed",
        "seed": job.training.seed,
        "model": model_record(job, before["weights_sha256"]),
        "parent": {"lineage": parent.lineage, "version": parent.version},
        "file": {"name": job.file.name, "sha256": job.file.sha256, **rows},
        "version": {
            "description": f"learned {job.file.name} ({rows['trained']:,} rows) on {parent.words}",
            "promote": decision["promote"],
            "reasons": decision["reasons"],
            "metrics": metrics,
        },
        "phases": [_phase_row(name, found) for name, found in done.items()],
        "table": _table(job, before, after),
        "memory": memory_record(plan, peak),
        "answers": after["answers"]["samples"],
        "warnings": decision["warnings"],
        "export": after["export"],
        "summary": {"accuracy": after["accuracy"], "perplexity": after["perplexity"]},
    }


def model_record(job: LineageJob, digest: str) -> Metrics:
    """The model that the lineage started from; `digest`: hash of the base's weights as it was loaded."""
    path = resolve_model(job.model.base_model, job.model.revision)
    facts = read_facts(path, allow_remote_code=job.model.trust_remote_code)
    return {
        "name": facts.name, "path": facts.path, "parameters": facts.parameters,
        "architecture": facts.architecture, "sha256": digest, "weights_sha256": digest,
    }  # fmt: skip


def _phase_row(name: str, metrics: Metrics) -> Metrics:
    keys = ("context", "steps", "perplexity", "accuracy")
    return {"phase": name, **{key: metrics[key] for key in keys if metrics.get(key) is not None}}


def _table(job: ContinualJob, before: Metrics, after: Metrics) -> list[Metrics]:
    """Before and after, each with n and interval."""
    seed = job.training.seed
    rows = []
    for name, change in after["changes"].items():
        old, new = ({**change[side], **NO_BASELINE, "seed": seed} for side in ("before", "after"))
        row = comparison_row(TITLES.get(name, name), old, new, "higher", "")
        rows.append({**row, "note": f"paired test p {change['p_value']:.2g}"})
    for key, title in (
        ("held_out_losses", "loss of this file's held-out rows (nats)"),
        ("earlier_losses", "loss of earlier files' held-out rows (nats)"),
    ):
        if after[key]:
            old, new = (_loss(found[key], seed) for found in (before, after))
            rows.append(comparison_row(title, old, new, "lower", ""))
    return rows


def _loss(losses: list[float], seed: int) -> dict[str, Any]:
    found = mean_estimate(losses).as_dict()
    return {"value": found["mean"], "ci95": found["ci95"], "n": found["n"], **NO_BASELINE, "seed": seed}
