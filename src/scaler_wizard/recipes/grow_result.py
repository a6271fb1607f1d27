"""The end of a `grow` run: what is exported, and the record that report, registry and `--json` read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from scaler_wizard.evals.statistics import wilson_interval
from scaler_wizard.models.export import ExportReport, export_adapter, export_merged
from scaler_wizard.models.merge import LogitComparison
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.grow_session import GrowSession
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.store.rundir import RunDir


def export_model(context: PhaseContext, session: GrowSession, job: GrowJob, run_dir: RunDir) -> Metrics:
    """Write adapter and merged model, compare each with the trained model, and say the numbers."""
    target = Path(job.export.directory) if job.export.directory else run_dir.export
    provenance = {
        "base model": job.model.base_model, "run": run_dir.id, "strategy": session.plan.strategy,
        "context": str(session.rope.target_context if session.rope else session.base_context),
        "rope": session.rope.method if session.rope else "none", "seed": str(job.training.seed),
    }  # fmt: skip
    written: Metrics = {}
    reports: list[ExportReport] = []
    if job.export.adapter and session.plan.strategy != "full":
        report = export_adapter(
            session.adapted, _fresh(target / "adapter", run_dir), title=run_dir.id, provenance=provenance
        )
        written["adapter"] = str(report.directory)
        reports.append(report)
    if job.export.merged and not session.is_prefix:
        report = export_merged(
            session.adapted, session.tokenizer, _fresh(target / "merged", run_dir), session.rope,
            title=run_dir.id, provenance=provenance,
        )  # fmt: skip
        written["merged"] = str(report.directory)
        written["weights_sha256"] = report.weights_sha256
        reports.append(report)
    elif session.is_prefix:
        context.note("a prefix cannot be merged into weights: the adapter is the export")
    for report in reports:
        for sentence in report.sentences():
            context.note(f"{report.directory.name}: {sentence}")
    if reports:
        last = reports[-1]
        written["logit_comparison"] = _comparison(last.long or last.short)
    return written


def _fresh(directory: Path, run_dir: RunDir) -> Path:
    """A target that may be written: inside the run's own folder an earlier try's export is replaced."""
    if directory.is_relative_to(run_dir.path) and directory.exists():
        shutil.rmtree(directory)
    return directory


def _comparison(found: LogitComparison) -> Metrics:
    return {
        "max_abs": found.max_abs, "mean_abs": found.mean_abs, "top1_agreement": found.top1_agreement,
        "positions": found.n_positions,
    }  # fmt: skip


def grow_result(
    job: GrowJob, plan: Plan, run_dir: RunDir, done: dict[str, Metrics], effective: int, peak_memory: int
) -> Metrics:
    """The run's record; its shape is documented in docs/grow.md."""
    base, final = done["P0"], done["P4"]
    facts = read_facts(resolve_model(job.model.base_model), allow_remote_code=job.model.trust_remote_code)
    return {
        "run": run_dir.id,
        "recipe": "grow",
        "status": "completed",
        "seed": job.training.seed,
        "model": {
            "name": facts.name, "path": facts.path, "parameters": facts.parameters,
            "architecture": facts.architecture, "sha256": base["weights_sha256"],
        },
        "base_context": plan.base_context,
        "target_context": plan.target_context,
        "effective_context": effective,
        "rope": _rope(done),
        "phases": [_phase_row(name, metrics) for name, metrics in done.items()],
        "table": _table(plan, base, done["P1"], final, effective),
        "nll_by_position": {
            key: _positions(metrics.get("at_target")) for key, metrics in (("before", base), ("after", final))
        },
        "needle": _needles(base, done, final),
        "candidates": {name: m["candidates"] for name, m in done.items() if "candidates" in m},
        "memory": memory_record(plan, peak_memory),
        "samples": final["probes"].get("sanity", {}).get("texts", []),
        "answers": final["probes"].get("tasks", {}).get("samples", []),
        "distillation": final.get("distillation"),
        "export": final["export"],
        "summary": {
            "perplexity": final["perplexity"], "accuracy": final["accuracy"], "effective_context": effective,
        },
    }  # fmt: skip


def _rope(done: dict[str, Metrics]) -> Metrics:
    kept = [m for m in done.values() if "rope_method" in m and m["passed"]]
    if not kept:
        return {"method": "none", "factor": 1.0}
    setting = next(item["setting"] for item in kept[-1]["candidates"] if item["chosen"])
    return {"method": setting["method"], "factor": setting["factor"]}


def memory_record(plan: Plan, peak: int) -> Metrics:
    """Predicted and measured peak; what the contract allows."""
    predicted = max((phase.memory for phase in plan.phases), key=lambda memory: memory.total)
    return {
        "predicted_bytes": predicted.total,
        "low_bytes": predicted.low,
        "high_bytes": predicted.high,
        "measured_peak_bytes": peak,
        "limit_bytes": plan.memory_limit,
    }


def _phase_row(name: str, metrics: Metrics) -> Metrics:
    keys = (
        "context",
        "steps",
        "passed",
        "rope_method",
        "reasons",
        "perplexity",
        "accuracy",
        "context_retention",
    )
    row = {"phase": name, **{key: metrics[key] for key in keys if key in metrics}}
    short = metrics.get("short") or metrics.get("probes", {}).get("short_context_nll") or {}
    tasks = metrics.get("probes", {}).get("tasks") or {}
    return {**row, "perplexity_ci": short.get("perplexity_ci95"), "accuracy_ci": tasks.get("ci95")}


def _table(plan: Plan, base: Metrics, adapted: Metrics, final: Metrics, effective: int) -> list[Metrics]:
    """Before and after, each with n, interval and baseline."""
    rows = []
    if "tasks" in final["probes"] and "tasks" in base["probes"]:
        rows.append(
            comparison_row(
                "task accuracy",
                base["probes"]["tasks"],
                final["probes"]["tasks"],
                "higher",
                "most frequent answer",
            )
        )
    short = comparison_row(
        f"loss within {plan.base_context} tokens (nats)", base["probes"]["short_context_nll"],
        final.get("at_target", {}).get("short") or final["probes"]["short_context_nll"], "lower", "",
    )  # fmt: skip
    change = short["after"] / short["before"] - 1 if short["before"] else 0.0
    rows.append({**short, "note": f"{change:+.2%}"})
    before, after = base.get("at_target"), final.get("at_target")
    if before and after:
        rows.append(
            comparison_row(
                f"needle at {effective} tokens",
                before["needle"],
                after["needle"],
                "higher",
                "window cut to the base context",
            )
        )
        rows.append(_beyond_row(plan, before["needle"], after["needle"]))
        rows.append(
            comparison_row(
                f"loss of the last tokens at {effective} minus base window (nats)",
                before["nll"],
                after["nll"],
                "lower",
                "",
            )
        )
    for probe, title in (("multi_key", "one of four needles"), ("qa", "cloze questions, 4 choices")):
        if probe in base["probes"] and probe in final["probes"]:
            rows.append(
                comparison_row(
                    title, base["probes"][probe], final["probes"][probe], "higher", "without the text"
                )
            )
    return rows


def comparison_row(metric: str, before: Metrics, after: Metrics, better: str, baseline_name: str) -> Metrics:
    """One row of the before/after table from two probe records (value, ci95, n, chance, baseline, seed)."""
    return {
        "metric": metric, "before": before["value"], "before_ci": before["ci95"], "after": after["value"],
        "after_ci": after["ci95"], "n": after["n"], "chance": after["chance"], "better": better,
        "baseline": after["baseline"] if baseline_name else None, "baseline_name": baseline_name,
        "seed": after["seed"], "note": "",
    }  # fmt: skip


def _beyond_row(plan: Plan, before: Metrics, after: Metrics) -> Metrics:
    """Only the needles that the base window cannot reach."""

    def side(needle: Metrics) -> Metrics:
        beyond, cut = needle["beyond"], needle["truncated_beyond"]
        return {
            "value": _share(beyond), "ci95": _wilson(beyond), "n": beyond["n"], "baseline": _share(cut),
            "chance": needle["chance"], "seed": needle["seed"],
        }  # fmt: skip

    name = f"needles more than {plan.base_context} tokens away"
    return comparison_row(name, side(before), side(after), "higher", "window cut to the base context")


def _share(counts: Metrics) -> float | None:
    return counts["correct"] / counts["n"] if counts["n"] else None


def _wilson(counts: Metrics) -> list[float]:
    return list(wilson_interval(counts["correct"], counts["n"]))


def _positions(at_target: Metrics | None) -> list[Metrics]:
    if at_target is None:
        return []
    bins = at_target["nll"]["by_position"]
    return [{"position": (b["start"] + b["end"]) / 2, "nll": b["nll"], "n": b["n"]} for b in bins]


def _needles(base: Metrics, done: dict[str, Metrics], final: Metrics) -> Metrics:
    """Accuracy by length and depth, before and after, and with the window cut to the base context."""
    after: Metrics = {}
    for metrics in (done["P1"], *done.values()):
        for needle in (metrics.get("needle"), metrics.get("probes", {}).get("needle")):
            if needle:
                after[str(needle["length"])] = _depths(needle)
    if "at_target" in final:
        after[str(final["at_target"]["needle"]["length"])] = _depths(final["at_target"]["needle"])
    before = {str(base["probes"]["needle"]["length"]): _depths(base["probes"]["needle"])}
    if "at_target" in base:
        before[str(base["at_target"]["needle"]["length"])] = _depths(base["at_target"]["needle"])
    chance = base["probes"]["needle"]["chance"]
    return {"chance": chance, "before": before, "after": after}


def _depths(needle: Metrics) -> Metrics:
    found = {}
    for item in needle["by_depth"]:
        low, high = _wilson(item["accuracy"])
        found[f"{item['depth']:g}"] = {
            "value": _share(item["accuracy"]),
            "low": low,
            "high": high,
            "n": item["accuracy"]["n"],
        }
    return found


def summary_lines(result: dict[str, Any]) -> list[str]:
    """The result in two sentences, for the terminal."""
    return [
        f"effective context {result['effective_context']:,} of {result['target_context']:,} tokens requested "
        f"(base {result['base_context']:,})",
    ]
