"""What is asked before each stage of a bootstrap, the export, and the record that the report reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaler_wizard.data.world import SKILLS
from scaler_wizard.evals.gap_proof import label_gains
from scaler_wizard.evals.statistics import wilson_interval
from scaler_wizard.models.export import export_merged
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.metering import metered
from scaler_wizard.planning.spend import Bill, bill
from scaler_wizard.recipes.bootstrap_constitution import NUMBER as CONSTITUTION
from scaler_wizard.recipes.bootstrap_constitution import constitution_of
from scaler_wizard.recipes.bootstrap_lab import Lab
from scaler_wizard.recipes.bootstrap_principles import untouched_places
from scaler_wizard.recipes.bootstrap_session import MODEL_DIR
from scaler_wizard.recipes.grow_result import comparison_row, memory_record
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import GateRequest, Metrics
from scaler_wizard.store.checkpoints import CheckpointStore

KNOWN_AS_DOCUMENTS = ("explicit", "implicit", "revise")
"""Skills whose tasks a base model knows as documents: what they gain may be elicitation."""


def gate_request(lab: Lab, number: int, title: str, attempt: int) -> GateRequest:
    """The question before an attempt: what the one before it reached, and what all have cost."""
    names = list(lab.done)
    last = lab.done[names[-1]]
    if attempt > 1:
        found = f"gate not met, try {attempt} with {last['next'].replace('_', ' ')}"
    elif number == 1:
        found = "the gap is proven"
    else:
        found = f"stage {number - 1} passed, {last['accuracy']:.1%} right"
    cost = running_bill(lab)
    details = {"before": names[-1], "reasons": last.get("reasons", []), "cost": cost.as_dict()}
    return GateRequest(f"Stage {number}, {title}: {found}; {cost.words()}; approve?", details)


def running_bill(lab: Lab) -> Bill:
    """What all attempts so far have cost, and what is left by the plan."""
    predicted = {phase.name: phase.seconds for phase in lab.plan.phases}
    return bill(metered(lab.run_dir.read_events()), lab.done, predicted, lab.job.price_per_hour)


def export_last(lab: Lab, context: PhaseContext) -> Metrics:
    """Write the session's model, read it back and compare."""
    target = lab.run_dir.export / "model"
    if target.exists():  # an attempt that was killed before its checkpoint
        shutil.rmtree(target)
    provenance = {
        "base model": lab.job.model.base_model, "run": lab.run_dir.id,
        "stages passed": ", ".join(str(number) for number in passed_stages(lab)) or "none",
        "seed": str(lab.job.training.seed),
    }  # fmt: skip
    report = export_merged(
        lab.session.adapted, lab.session.tokenizer, target, title=lab.run_dir.id, provenance=provenance
    )
    for sentence in report.sentences():
        context.note(f"model: {sentence}")
    return {"merged": str(target), "weights_sha256": report.weights_sha256}


def passed_stages(lab: Lab) -> list[int]:
    """Numbers of the stages whose gate was met."""
    return [found["stage"] for found in lab.done.values() if found.get("stage") and found["passed"]]


def bootstrap_result(lab: Lab, done: dict[str, Metrics], peak: int) -> Metrics:
    """The run's record; its shape is documented in docs/bootstrap.md."""
    job, base = lab.job, done["P0"]
    passed = passed_stages(lab)
    facts = read_facts(resolve_model(job.model.base_model), allow_remote_code=job.model.trust_remote_code)
    stages = [
        {"phase": name, **stage_record(lab, name, found)}
        for name, found in done.items()
        if found.get("stage")
    ]
    return {
        "run": lab.run_dir.id,
        "recipe": "bootstrap",
        "status": "completed",
        "seed": job.training.seed,
        "model": {
            "name": facts.name, "path": facts.path, "parameters": facts.parameters,
            "architecture": facts.architecture, "sha256": base["weights_sha256"],
        },
        "world": {"name": lab.world.name, "types": list(lab.world.types)},
        "base": {key: base[key] for key in (
            "gaps", "decision", "audit", "warnings", "sentinels", "document_accuracy", "train",
            "base_texts")},
        "stages": stages,
        "passed": passed,
        "stopped": _stopped(stages),
        "gains": gains(lab),
        "phases": [
            {"phase": name, "steps": found["steps"], "passed": found["passed"],
             "accuracy": found.get("accuracy"), "reasons": found.get("reasons", [])}
            for name, found in done.items()
        ],
        "table": _table(lab),
        "retention": retention(lab),
        "memory": memory_record(lab.plan, peak),
        "cost": running_bill(lab).as_dict(),
        "export": done["P7"]["export"],
        "summary": {
            "passed": len(passed), "asked": job.stages.last,
            "accuracy": stages[-1]["accuracy"] if stages else None,
        },
    }  # fmt: skip


def stage_record(lab: Lab, name: str, found: Metrics) -> Metrics:
    """One attempt, without its single answers; with the directory of its model where it passed."""
    model = CheckpointStore(lab.run_dir).checkpoint(name).path / MODEL_DIR
    kept = {key: value for key, value in found.items() if key != "answers"}
    return {**kept, "model": _relative(model, lab.run_dir.path) if found["passed"] else None}


def _relative(path: Path, start: Path) -> str:
    return str(path.relative_to(start))


def _stopped(stages: list[dict[str, Any]]) -> Metrics | None:
    """Why the run ended before its last stage; None where it did not."""
    if not stages or stages[-1]["passed"]:
        return None
    return {"stage": stages[-1]["stage"], "phase": stages[-1]["phase"], "reasons": stages[-1]["reasons"]}


def final_answers(lab: Lab) -> dict[str, list[bool]]:
    """The newest passed model's answers by skill."""
    numbers = passed_stages(lab)
    return lab.passed_answers(numbers[-1]) if numbers else lab.passed_answers(0)


def gains(lab: Lab) -> list[Metrics]:
    """What each learned skill gained over the best way of asking the base, and what to call that."""
    base, after = lab.done["P0"], final_answers(lab)
    learned: list[str] = [
        skill for number, skill in enumerate(SKILLS, start=1) if number in passed_stages(lab)
    ]
    if not learned:
        return []
    best = {skill: base["ways"][skill][base["gaps"][skill]["best"]] for skill in learned}
    known = {
        skill: base["document"][: len(best[skill])] for skill in learned
        if skill in KNOWN_AS_DOCUMENTS and len(base["document"]) >= len(best[skill])
    }  # fmt: skip
    counted = {skill: [at for at in judged_places(lab)[skill] if at < len(best[skill])] for skill in learned}
    best, now, known = (
        {skill: [answers[at] for at in counted[skill]] for skill, answers in given.items()}
        for given in (best, {skill: after[skill] for skill in learned}, known)
    )
    return [gain.as_dict() for gain in label_gains(best, now, known)]


def retention(lab: Lab) -> list[Metrics]:
    """Right answers to each skill's questions after each passed stage: how well earlier stages are kept."""
    rows = []
    for number in [0, *passed_stages(lab)]:
        answers = lab.passed_answers(number)
        places = judged_places(lab) if number == CONSTITUTION else None
        for skill, every in answers.items():
            given = every if places is None else [every[at] for at in places[skill]]
            if given:
                ci95 = list(wilson_interval(sum(given), len(given)))
                rows.append(
                    {"stage": number, "skill": skill, "right": sum(given), "n": len(given), "ci95": ci95}
                )
    return rows


def judged_places(lab: Lab) -> Mapping[str, Sequence[int]]:
    """By skill the questions that the final model is judged by.

    All of them, until a constitution has passed: then those whose right answer it does not change.
    """
    if CONSTITUTION in passed_stages(lab):
        return {str(skill): at for skill, at in untouched_places(lab, constitution_of(lab)).items()}
    return {skill: range(len(questions)) for skill, questions in lab.all_questions.items()}


def _table(lab: Lab) -> list[Metrics]:
    """Each learned skill asked through the chat template: the base, and the newest model that passed."""
    before, after, places = lab.passed_answers(0), final_answers(lab), judged_places(lab)
    seed = lab.job.training.seed
    apart = ", no rule applying" if CONSTITUTION in passed_stages(lab) else ""
    return [
        comparison_row((f"{skill} instructions" if skill in ("explicit", "implicit") else skill) + apart,
                       _side([before[skill][at] for at in places[skill]], seed),
                       _side([after[skill][at] for at in places[skill]], seed), "higher", "")
        for skill in SKILLS
        if after.get(skill)
    ]  # fmt: skip


def _side(answers: list[bool], seed: int) -> Metrics:
    right, n = sum(answers), len(answers)
    return {
        "value": right / n, "ci95": list(wilson_interval(right, n)), "n": n, "chance": None, "baseline": None,
        "seed": seed,
    }  # fmt: skip
