"""A finished `grow` run on disk, as the worker leaves it; shapes and sizes of the embedded model's demo."""

from __future__ import annotations

import json
import math
import random
import uuid
from pathlib import Path
from typing import Any

from scaler_wizard.safety.contract import job_hash
from scaler_wizard.specs.events import (
    EVENT,
    Event,
    GateClosed,
    GateOpened,
    Note,
    PhaseDone,
    PhaseStarted,
    ProbeDone,
    Progress,
    RunEnded,
    RunStarted,
    StepDone,
    Telegram,
)
from scaler_wizard.specs.grow import GrowJob

START = 1_790_000_000.0
MIB = 2**20
GIB = 2**30
TITLES = {
    "P0": "load, hash and evaluate the base",
    "P1": "adapt at the base context",
    "P2": "context 128 -> 256",
    "P3": "context 256 -> 512",
    "P4": "final training, merge, export",
}
STEPS = {"P1": 40, "P3": 12, "P4": 8}


def build_run(path: Path, *, finished: bool = True) -> Path:
    """Write the run directory; unfinished ends after P1 with the breaker's stop and no result."""
    path.mkdir(parents=True)
    job = job_of()
    (path / "job.json").write_text(json.dumps(job))
    (path / "plan.json").write_text(json.dumps(plan_of()))
    identity = {"id": path.name, "uuid": str(uuid.UUID(int=7)), "name": "grow", "created": START}
    (path / "run.json").write_text(json.dumps(identity))
    write_events(path, events_of(finished))
    if finished:
        (path / "result.json").write_text(json.dumps(result_of(path.name)))
    return path


def write_events(path: Path, events: list[Event]) -> None:
    """events.jsonl with times 0.8 s apart."""
    with (path / "events.jsonl").open("wb") as file:
        for seq, event in enumerate(events, 1):
            file.write(
                EVENT.dump_json(event.model_copy(update={"seq": seq, "time": START + 0.8 * seq})) + b"\n"
            )


def job_of() -> dict[str, Any]:
    """A signed job."""
    job = {
        "recipe": "grow",
        "name": "grow",
        "model": {"base_model": "seedling"},
        "scaling": {"target_context": 512},
        "dataset": {"source": "synthetic", "identifier": "seedling"},
    }
    signed = {
        "contract_version": "1.0.0", "authorized_by": "Ada Example <ada@example.org>",
        "approved_at": "2026-09-21T13:30:00+00:00", "session_id": "3f0c",
        "signoff": "I accept responsibility for this run",
        "scope": "Grow the embedded model to a context of 512 tokens on this machine",
        "rollback_plan": "Return to a committed phase with `scaler rollback`; the base model is never "
        "changed.",
        "job_hash": job_hash(GrowJob.parse(job)),
    }  # fmt: skip
    return job | {"contract": signed}


def plan_of() -> dict[str, Any]:
    """The parts of a plan that the report shows."""
    hardware = {
        "gpus": [], "cpu_model": "Intel Xeon (Sapphire Rapids)", "cpu_cores": 2, "cpu_bf16": True,
        "cpu_amx": True,
        "ram_total": 16 * GIB, "ram_available": 12 * GIB, "disk_free": 40 * GIB, "matmul_flops": 2.6e12,
        "flops_source": "measured, 512 x 512 bf16",
    }  # fmt: skip
    return {"recipe": "grow", "device": "cpu", "hardware": hardware}


def events_of(finished: bool) -> list[Event]:
    """60 steps over three phases; P2 passes untrained."""
    facts = {"device": "cpu", "threads": 2, "torch": "2.13.0+cpu", "transformers": "5.23.0"}
    events: list[Event] = [RunStarted(run="grow-0001", attempt=1, phases=list(TITLES), facts=facts)]
    noise = random.Random(0)
    for phase, title in TITLES.items():
        events.append(PhaseStarted(phase=phase, title=title))
        events.append(Progress(phase=phase, activity="probes", done=1, total=4))
        if not finished and phase == "P2":
            events.append(
                Telegram(phase="P1", action="stop", reason="loss spike: 9.1 is 4.2x the window", step=40)
            )
            events.append(
                RunEnded(status="failed", reason="the breaker stopped it", advice="roll back to P1")
            )
            return events
        events += _steps(phase, noise)
        probe = {"value": 0.97, "ci95": [0.92, 0.99], "n": 120}
        events.append(ProbeDone(phase=phase, probe="needle", result=probe))
        events.append(Note(phase=phase, text="yarn, factor 2, was scored best of 5 candidates"))
        metrics = {"perplexity": 16.5, "accuracy": 0.6, "steps": STEPS.get(phase, 0)}
        events.append(PhaseDone(phase=phase, checkpoint=f"{phase}-0001", seconds=12.1, metrics=metrics))
        sentence = f"Ready to leave {phase}; expected quality drop 1%; approve?"
        if phase != "P4":
            events.append(GateOpened(gate=phase, sentence=sentence, deadline=START + 900))
            events.append(GateClosed(gate=phase, action="approve", by="Ada Example"))
    events.append(RunEnded(status="completed"))
    return events


def _steps(phase: str, noise: random.Random) -> list[Event]:
    starts = {"P1": 2.9, "P3": 2.55, "P4": 2.35}
    total = STEPS.get(phase, 0)
    steps: list[Event] = []
    for step in range(1, total + 1):
        loss = starts[phase] - 0.5 * (1 - math.exp(-step / 12)) + noise.gauss(0, 0.06)
        steps.append(
            StepDone(
                phase=phase, step=step, total_steps=total, loss=loss, grad_norm=1.2, learning_rate=2e-3,
                tokens=1024,
                seconds=0.4, memory_bytes=int((430 + 60 * (phase == "P3") + noise.random() * 12) * MIB),
            )
        )  # fmt: skip
        if phase == "P1" and step == 30:
            reason = "perplexity slope 0.16 per step over 10 steps"
            steps.append(Telegram(phase=phase, action="warn", reason=reason, step=step, slope=0.16))
    return steps


def result_of(run: str) -> dict[str, Any]:
    """result.json of a completed run."""
    return {
        "run": run, "recipe": "grow", "status": "completed", "seed": 0, "seconds": 105.2,
        "model": {"name": "seedling", "parameters": 4_212_736, "sha256": "9f" * 32,
        "architecture": "LlamaForCausalLM"},
        "base_context": 128, "target_context": 512, "effective_context": 512, "rope": {"method": "yarn",
        "factor": 4.0},
        "phases": _phases(), "table": _table(), "nll_by_position": _nll(), "needle": _needle(),
        "candidates": _candidates(),
        "samples": [
            {"prompt": "The gardener planted", "text": " a row of beans behind the shed and watered them.",
            "kind": "text"},
            {"prompt": "What is 17 + 5?", "text": "22", "kind": "question"},
        ],
        "memory": {
            "predicted_bytes": 505 * MIB, "low_bytes": 470 * MIB, "high_bytes": 545 * MIB,
            "measured_peak_bytes": 502 * MIB, "limit_bytes": int(10.8 * GIB),
        },
        "export": {
            "merged": f"/home/ada/workspace/runs/{run}/export/merged",
            "adapter": f"/home/ada/workspace/runs/{run}/export/adapter",
            "logit_comparison": {"max_abs": 1.1e-5, "top1_agreement": 1.0, "positions": 1234},
        },
        "rehearsal": {"rollback_seconds": 0.012},
        "warnings": ["gates were approved by the run itself (safety.gates.ask: auto_approve)"],
    }  # fmt: skip


def _phases() -> list[dict[str, Any]]:
    perplexity = {"P0": 16.9, "P1": 12.2, "P2": 12.3, "P3": 12.1, "P4": 11.8}
    accuracy = {"P0": 0.12, "P1": 0.55, "P2": 0.56, "P3": 0.6, "P4": 0.66}
    reasons = {
        "P0": ["baseline: every later number is compared with this"],
        "P1": ["perplexity fell by 28%", "no task lost more than its error"],
        "P2": [
            "paired loss difference to the base window 0.012, allowed 0.05 + 2 standard errors",
            "needles held at 5 of 5 depths", "short-context loss +0.3%, allowed 1%",
        ],
        "P3": ["not passed untrained: needles missed at depths 0 and 0.25", "passed after 12 steps"],
        "P4": ["exported logits agree within 1.1e-05"],
    }  # fmt: skip
    return [
        {
            "phase": phase, "title": title, "context": {"P0": 128, "P1": 128, "P2": 256}.get(phase, 512),
            "steps": STEPS.get(phase, 0), "seconds": 9.0 + 4 * i, "passed": True,
            "rope_method": "none" if i < 2 else "yarn", "checkpoint": f"{phase}-0001",
            "reasons": reasons[phase],
            "perplexity": perplexity[phase], "accuracy": accuracy[phase],
            "accuracy_ci": [accuracy[phase] - 0.07, accuracy[phase] + 0.07],
        }
        for i, (phase, title) in enumerate(TITLES.items())
    ]  # fmt: skip


def _table() -> list[dict[str, Any]]:
    return [
        {
            "metric": "needle accuracy at 512", "unit": "", "before": 0.03, "before_ci": [0.01, 0.08],
            "after": 0.97,
            "after_ci": [0.92, 0.99], "n": 120, "baseline": 0.25,
            "baseline_name": "truncated to the base window",
            "better": "higher", "note": "",
        },
        {
            "metric": "perplexity within 128", "unit": "", "before": 16.9, "before_ci": [15.9, 17.9],
            "after": 11.8,
            "after_ci": [11.2, 12.5], "n": 48, "baseline": None, "baseline_name": "", "better": "lower",
            "note": "",
        },
        {
            "metric": "loss at 512 minus base window", "unit": "nats", "before": 1.42, "before_ci": [1.3,
            1.54],
            "after": 0.008, "after_ci": [-0.02, 0.036], "n": 48, "baseline": 0.0,
            "baseline_name": "base window",
            "better": "lower", "note": "paired by document",
        },
        {
            "metric": "task accuracy", "unit": "", "before": 0.12, "before_ci": [0.08, 0.17], "after": 0.66,
            "after_ci": [0.59, 0.72], "n": 200, "baseline": 0.09, "baseline_name": "most frequent answer",
            "better": "higher", "note": "",
        },
        {
            "metric": "question answering", "unit": "", "before": 0.4, "before_ci": [0.17, 0.69],
            "after": 0.5,
            "after_ci": [0.24, 0.76], "n": 10, "baseline": 0.3, "baseline_name": "without the passage",
            "better": "higher", "note": "10 questions say little",
        },
    ]  # fmt: skip


def _nll() -> dict[str, list[dict[str, float]]]:
    curves: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for position in range(16, 513, 16):
        usual = 2.4 + 1.1 * math.exp(-position / 40)
        beyond = max(0, position - 128) / 384
        for key, nll in (("before", usual + 0.3 + 2.2 * beyond**0.6), ("after", usual)):
            curves[key].append(
                {"position": position, "nll": nll, "low": nll - 0.09, "high": nll + 0.09, "n": 48}
            )
    return curves


def _needle() -> dict[str, Any]:
    def cell(value: float) -> dict[str, float]:
        return {"value": value, "low": max(0.0, value - 0.12), "high": min(1.0, value + 0.05), "n": 24}

    depths = ("0.0", "0.25", "0.5", "0.75", "1.0")
    before = {
        "128": (0.9, 0.92, 0.95, 0.96, 1),
        "256": (0.02, 0.04, 0.5, 0.9, 1),
        "512": (0, 0, 0.04, 0.1, 0.2),
    }
    after = {"128": (0.96, 1, 1, 1, 1), "256": (0.96, 0.96, 1, 1, 1), "512": (0.92, 0.96, 0.96, 1, 1)}
    cut = {"256": (0.0, 0.04, 0.3, 0.95, 1), "512": (0, 0, 0, 0.0, 1)}
    named = {"before": before, "after": after, "truncated": cut}
    tables = {
        key: {length: dict(zip(depths, map(cell, values), strict=True)) for length, values in lengths.items()}
        for key, lengths in named.items()
    }
    return {"chance": 0.01, **tables}


def _candidates() -> dict[str, list[dict[str, Any]]]:
    scores = {
        "P2": {"none": (1.31, 0.3), "linear": (0.24, 0.8), "ntk": (0.06, 0.93), "dynamic": (0.05, 0.95),
        "yarn": (0.012, 0.98)},
        "P3": {"none": (2.9, 0.05), "linear": (0.61, 0.4), "ntk": (0.31, 0.6), "dynamic": (0.25, 0.65),
        "yarn": (0.07, 0.8)},
    }  # fmt: skip
    return {
        phase: [
            {
                "method": method, "nll_difference": difference, "se": 0.02 + difference / 30,
                "needle": needle,
                "passed": difference < 0.05, "chosen": method == "yarn",
            }
            for method, (difference, needle) in methods.items()
        ]
        for phase, methods in scores.items()
    }  # fmt: skip
