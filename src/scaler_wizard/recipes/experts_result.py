"""The record of an `experts` run: what the host publishes, and what the report shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.grow_result import comparison_row, memory_record
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.experts import ExpertsJob
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.training.memory import peak_memory_bytes


def experts_result(job: ExpertsJob, plan: Plan, run_dir: RunDir, done: Mapping[str, Metrics]) -> Metrics:
    """result.json; the key `experts` is what the report's own tables and pictures are made of."""
    routers, measured, deployed = done["P3"], done["P4"], done["P5"]
    decision, routing = deployed["decision"], measured["routing"]
    end_to_end = _with_in_service(measured)
    facts = read_facts(resolve_model(job.model.base_model, job.model.revision))
    digest = deployed["weights_sha256"]
    return {
        "run": run_dir.id,
        "recipe": "experts",
        "status": "completed",
        "seed": job.training.seed,
        "model": {
            "name": facts.name, "path": facts.path, "parameters": facts.parameters,
            "architecture": facts.architecture, "sha256": digest, "weights_sha256": digest,
        },
        "version": {
            "description": f"{len(job.labels)} experts behind a {routers['chosen']['kind']} router",
            "promote": deployed["promote"],
            "reasons": decision["reasons"],
            "metrics": {
                "accuracy": measured["accuracy"], "routing_accuracy": routing["accuracy"]["value"],
                "labels": list(job.labels), "warnings": decision["warnings"],
            },
        },
        "experts": {
            "labels": list(job.labels),
            "dataset": dict(done["P0"]),
            "adapters": done["P1"]["adapters"],
            "ladder": routers["ladder"],
            "chosen": routers["chosen"],
            "routing": routing,
            "end_to_end": end_to_end,
            "work": measured["answers"]["work"],
            "decision": {**decision, "promoted": deployed["promote"]},
        },
        "phases": [_phase_row(name, found) for name, found in done.items()],
        "table": _table(job, end_to_end["settings"]),
        "memory": memory_record(plan, peak_memory_bytes(torch.device(plan.device))),
        "answers": measured["answers"]["samples"],
        "warnings": decision["warnings"],
        "export": {"experts": deployed["folder"]},
        "summary": {"accuracy": measured["accuracy"]},
    }  # fmt: skip


def _with_in_service(measured: Metrics) -> Metrics:
    """The settings, and the version that was in service as one more where it could be asked."""
    found, before = measured["end_to_end"], measured["in_service"]
    if before is None or before["refused"]:
        return dict(found)
    return {**found, "settings": {**found["settings"], "in_service": before}}


def _phase_row(name: str, metrics: Metrics) -> Metrics:
    keys = ("steps", "accuracy")
    return {"phase": name, **{key: metrics[key] for key in keys if metrics.get(key) is not None}}


def _table(job: ExpertsJob, settings: Mapping[str, Any]) -> list[Metrics]:
    """Right answers with the router, beside each other way to answer the same inputs."""
    seed = job.training.seed

    def side(name: str) -> Metrics:
        return {**settings[name], "chance": None, "baseline": None, "seed": seed}

    rows = []
    for name, found in settings.items():
        if name != "routed":
            title = f"right answers: {found['words']}, then {settings['routed']['words']}"
            row = comparison_row(title, side(name), side("routed"), "higher", "")
            rows.append({**row, "note": f"paired test p {found['p_value']:.2g}"})
    return rows
