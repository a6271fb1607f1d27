"""What earlier runs of this workspace were and how they ended, for the planner to learn from."""

from __future__ import annotations

from typing import Any

from scaler_wizard.errors import ScalerError
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.hardware import GIB
from scaler_wizard.planning.history import Outcome, RunRecord
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import MEMORY_FRACTION, Plan
from scaler_wizard.store.rundir import ExitStatus, RunDir
from scaler_wizard.store.workspace import Workspace

MAX_RUNS = 500


def run_records(workspace: Workspace) -> list[RunRecord]:
    """Finished runs, oldest first; one that cannot be read teaches nothing and is left out."""
    records = []
    for run_dir in workspace.run_dirs()[-MAX_RUNS:]:
        try:
            record = _record(run_dir)
        except (ScalerError, KeyError, TypeError, ValueError, AttributeError):
            continue  # somebody edited or removed files of an old run: planning must not fail over it
        if record is not None:
            records.append(record)
    return records


def _record(run_dir: RunDir) -> RunRecord | None:
    status = run_dir.exit_status()
    if status is None or status.outcome in ("paused", "stopped"):
        return None
    plan = Plan.from_dict(run_dir.plan())
    if plan.recipe != "grow":
        return None
    result = run_dir.result() or {}
    facts = read_facts(resolve_model(run_dir.job()["model"]["base_model"]))
    return RunRecord(
        run=run_dir.id,
        template=plan.template or "",
        parameters=facts.parameters,
        on_gpu=plan.device != "cpu",
        memory_gib=plan.memory_limit / MEMORY_FRACTION / GIB,
        rank=plan.lora.rank,
        learning_rate=plan.learning_rate,
        context_multiplier=plan.target_context / plan.base_context,
        outcome=_outcome(status, result),
        quality_gain=_gain(result),
    )


def _outcome(status: ExitStatus, result: dict[str, Any]) -> Outcome:
    if status.outcome == "completed":
        reached = result.get("effective_context", 0) >= result.get("target_context", 0)
        return "completed" if reached else "context_gate_failed"
    if "circuit breaker" in status.reason:
        return "breaker"
    return "out_of_memory" if "memory" in status.reason else "failed"


def _gain(result: dict[str, Any]) -> float:
    """Relative fall of the loss within the base context."""
    row = next((row for row in result.get("table", []) if row["metric"].startswith("loss within")), None)
    return 1 - row["after"] / row["before"] if row and row["before"] else 0.0
