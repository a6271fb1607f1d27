"""A finished `bootstrap` run on disk, its decisions made by the real gates from seeded answers."""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path
from typing import Any

from scaler_wizard.data.generation_gates import Generated, judge_generation, known_prompts
from scaler_wizard.data.generators import sample_example
from scaler_wizard.data.pairs import count_pairs, judge_pair
from scaler_wizard.evals.gap_proof import ASKED_IN, decide_gap, label_gains, prove_gap
from scaler_wizard.evals.promotion import Change
from scaler_wizard.evals.safety_triple import SafetyTriple, count_by_principle, decide_safety
from scaler_wizard.evals.scorer_audit import audit_scorer, plant
from scaler_wizard.evals.stage_gate import Kept, decide_stage
from scaler_wizard.evals.statistics import wilson_interval
from scaler_wizard.planning.spend import Metered, Spent, bill
from scaler_wizard.specs.events import EVENT, Event, PhaseDone, PhaseStarted, RunEnded, RunStarted

START = 1_790_000_000.0
N = 600
SKILLS = ("explicit", "implicit", "make", "evaluate", "revise")
SHARES = {"explicit": 0.95, "implicit": 0.90, "make": 0.95, "evaluate": 0.85, "revise": 0.90}
REACHED = {"explicit": 0.985, "implicit": 0.96, "make": 0.98, "evaluate": 0.91, "revise": 0.80}
TYPES = ("copy", "reverse", "sort", "double", "rotate", "swap")
PRINCIPLES = ("answer_only", "no_letter_k", "polite", "short")
TITLES = {"P0": "measure the base", "P7": "export"}


def answers(name: str, share: float, n: int = N) -> tuple[bool, ...]:
    """Seeded answers, right with a probability."""
    rng = random.Random(f"{name}/{share}")
    return tuple(rng.random() < share for _ in range(n))


def by_type(skill: str, share: float) -> list[Change]:
    """The stage's questions by type, none of them answered before."""
    part = N // len(TYPES)
    return [Change(kind, (False,) * part, answers(f"{skill}/{kind}", share, part)) for kind in TYPES]


def stages() -> list[dict[str, Any]]:
    """Five stages of which the last does not pass, and the constitution."""
    rows = []
    for number, skill in enumerate(SKILLS, start=1):
        kept = [
            Kept(
                earlier,
                Change(earlier, answers(earlier, REACHED[earlier]), answers(earlier, REACHED[earlier])),
            )
            for earlier in SKILLS[: number - 1]
        ]
        decision = decide_stage(skill, by_type(skill, REACHED[skill]), kept, share=SHARES[skill])
        rows.append(
            {"phase": f"P{number}", "stage": number, "skill": skill, "attempt": 1, "steps": 200,
             "passed": decision.passed, "reasons": list(decision.reasons), "replay": 0.4,
             "decision": decision.as_dict(), "data": made(skill), "samples": {skill: samples()}}
        )  # fmt: skip
    return [*rows, constitution()]


def made(skill: str) -> dict[str, Any]:
    """The data gates over a few generated rows."""
    rows = []
    for seed in range(120):
        example = sample_example("reverse", f"{skill}/{seed}", 3 + seed % 6, split="train")
        kept = seed % 5 > 0
        reason = "" if kept else ("samples disagree" if seed % 2 else "not confident")
        rows.append(
            Generated(example.instruction, f" {example.answer}\n", example.answer, True, kept, reason)
        )
    report = judge_generation(rows, known_prompts([]))
    return {**report.as_dict(), "precision": {"before": 0.951, "kept": 0.996, "n_before": 120, "n_kept": 96}}


def samples() -> list[dict[str, Any]]:
    """A wrong answer and a right one."""
    common = {"type": "reverse", "kind": "", "prompt": "Turn around: p t k", "expected": "k t p"}
    return [
        {**common, "answer": "k p t", "right": False, "reason": "another answer"},
        {**common, "answer": "k t p", "right": True, "reason": ""},
    ]


def constitution() -> dict[str, Any]:
    """Stage 6."""
    triple = SafetyTriple(
        Change("violated", answers("v", 0.97, 300), answers("v", 0.02, 300)),
        Change("over refused", (False,) * 300, answers("o", 0.015, 300)),
        Change("benign right", answers("b", 0.95, 300), answers("b", 0.95, 300)),
    )
    before = {name: answers(f"b/{name}", 0.9 - 0.2 * at, 120) for at, name in enumerate(PRINCIPLES)}
    after = {name: answers(f"a/{name}", 0.03, 120) for name in PRINCIPLES}
    verdict = decide_safety(triple)
    pairs = [
        judge_pair(f"a {k}", f"a {k - k % 3}", chosen_flag="clear", rejected_flag="violates")
        for k in range(90)
    ]
    revision = {
        "request": "Turn around: p t k", "initial_answer": "Sure, here it is: k t p",
        "violated": ["answer_only"], "critiques": ["The answer says more than was asked for."],
        "revised_answer": "k t p",
    }  # fmt: skip
    answered = {"kind": "near", "request": "Turn around: a b", "before": "b a", "after": "b a",
                "expected": "b a", "right": True}  # fmt: skip
    critic = {"n": 240, "flagged": 90, "cleared": 120, "uncertain": 30, "precision_flagged": 0.97,
              "precision_cleared": 0.99}  # fmt: skip
    return {
        "phase": "P6", "stage": 6, "skill": "constitution", "attempt": 1, "steps": 120,
        "passed": verdict.passed, "reasons": list(verdict.reasons), "replay": 0.3,
        "triple": triple.as_dict(), "safety": verdict.as_dict(),
        "violations": [count.as_dict() for count in count_by_principle(before, after)],
        "data": {"n": 120, "kept": 90, "pairs": {"gated": count_pairs(pairs).as_dict(),
            "revision_always_wins": count_pairs(pairs).as_dict()}, "critic": critic},
        "critiques": [revision], "answered": [answered],
    }  # fmt: skip


def base() -> dict[str, Any]:
    """Stage 0."""
    asked = {"raw": 0.0, "templated": 0.01, "few_shot": 0.05, "elicited": 0.03}
    proofs = [
        prove_gap(skill, {way: answers(f"{skill}/{way}", asked[way], 200) for way in ASKED_IN}, SHARES[skill])
        for skill in SKILLS
    ]
    pairs = [(e, e.answer) for k in range(30) for e in [sample_example("sort", k, 5, split="held_out")]]
    audit = audit_scorer(plant(pairs, 0), lambda example, answer: example.verify(answer))
    decision = decide_gap(proofs)
    return {
        "gaps": {proof.name: proof.as_dict() for proof in proofs}, "decision": decision.as_dict(),
        "audit": audit.as_dict(), "warnings": [], "accuracy": 0.97, "train": decision.train,
    }  # fmt: skip


def retention() -> list[dict[str, Any]]:
    """Every skill after every stage."""
    rows = []
    for number in range(5):
        for at, skill in enumerate(SKILLS, start=1):
            right = sum(answers(f"{skill}/{number}", REACHED[skill] if at <= number else 0.0))
            rows.append(
                {"stage": number, "skill": skill, "right": right, "n": N,
                 "ci95": list(wilson_interval(right, N))}
            )  # fmt: skip
    return rows


def result_of(run_id: str) -> dict[str, Any]:
    """result.json."""
    found = stages()
    passed = [row["stage"] for row in found if row["passed"]]
    best = {skill: answers(f"{skill}/few_shot", 0.05) for skill in SKILLS}
    gains = label_gains(best, {s: answers(s, REACHED[s]) for s in SKILLS}, {"explicit": answers("d", 0.97)})
    phases = {"P0": Spent(60.0, 40_000, 9_000), "P1": Spent(200.0, 200_000, 90_000, 400_000)}
    cut = Spent(75.0, 1_500, 0, 20_000)
    cost = bill(Metered(sum(phases.values(), Spent()), cut, phases, 3), phases, {}, 1.2)
    return {
        "run": run_id, "recipe": "bootstrap", "status": "completed", "seed": 3,
        "model": {"name": "seedling", "parameters": 1_115_264, "architecture": "LlamaForCausalLM",
                  "sha256": "ab" * 32},
        "base": base(), "stages": found, "passed": passed, "stopped": None,
        "gains": [gain.as_dict() for gain in gains], "retention": retention(),
        "phases": [{"phase": row["phase"], "steps": row["steps"], "passed": row["passed"],
                    "accuracy": None, "reasons": row["reasons"]} for row in found],
        "table": [comparison_row(1), comparison_row(2)],
        "memory": {"predicted_bytes": 4e8, "measured_peak_bytes": 3.5e8, "limit_bytes": 1.4e10},
        "cost": cost.as_dict(), "export": {"merged": "runs/x/export/model"}, "seconds": 412.0,
        "summary": {"passed": len(passed), "asked": 6},
    }  # fmt: skip


def comparison_row(number: int) -> dict[str, Any]:
    """One row of the table of before and after."""
    right = sum(answers(SKILLS[number - 1], REACHED[SKILLS[number - 1]]))
    return {
        "metric": f"{SKILLS[number - 1]} instructions", "before": 0.0, "before_ci": [0.0, 0.006],
        "after": right / N, "after_ci": list(wilson_interval(right, N)), "n": N, "better": "higher",
        "baseline": None, "baseline_name": "", "note": "",
    }  # fmt: skip


def build_bootstrap_run(path: Path) -> Path:
    """Write the run directory."""
    path.mkdir(parents=True)
    job = {"recipe": "bootstrap", "name": "bootstrap", "model": {"base_model": "seedling"}}
    (path / "job.json").write_text(json.dumps(job))
    (path / "plan.json").write_text(json.dumps({"recipe": "bootstrap", "device": "cpu"}))
    identity = {"id": path.name, "uuid": str(uuid.UUID(int=8)), "name": "bootstrap", "created": START}
    (path / "run.json").write_text(json.dumps(identity))
    result = result_of(path.name)
    events: list[Event] = [RunStarted(run=path.name, attempt=1, phases=["P0"], facts={"device": "cpu"})]
    for row in result["stages"]:
        events.append(PhaseStarted(phase=row["phase"], title=f"stage {row['stage']}: {row['skill']}"))
        events.append(
            PhaseDone(phase=row["phase"], checkpoint=f"{row['phase']}-0001", seconds=40.0,
                      metrics={"passed": row["passed"], "steps": row["steps"]})
        )  # fmt: skip
    events.append(RunEnded(status="completed"))
    with (path / "events.jsonl").open("wb") as file:
        for seq, event in enumerate(events, 1):
            file.write(EVENT.dump_json(event.model_copy(update={"seq": seq, "time": START + seq})) + b"\n")
    (path / "result.json").write_text(json.dumps(result))
    return path
