"""Stage 6: the model judges and revises its answers by a constitution, then learns to prefer the revisions.

Which signal comes from where: verdicts and revisions are the model's own, by the constitution's prompts; the
anchors are its own answers that it cleared, and rows of earlier stages; negatives of known kinds are made by
rule. Exact checks and right answers measure, before and after, and choose nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scaler_wizard.data.critique import tidy
from scaler_wizard.data.generation_gates import (
    Generated,
    GenerationLimits,
    judge_generation,
    known_prompts,
)
from scaler_wizard.data.pair_batches import TokenPair
from scaler_wizard.data.records import write_records
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.world import SKILLS
from scaler_wizard.evals.safety_triple import decide_safety
from scaler_wizard.evals.stage_gate import decide_stage
from scaler_wizard.recipes.bootstrap_anchors import anchor_rows, make_new_tasks
from scaler_wizard.recipes.bootstrap_critique import (
    Critiqued,
    add_negatives,
    critique_answers,
    judged_by,
    pair_metrics,
)
from scaler_wizard.recipes.bootstrap_filter import filtered
from scaler_wizard.recipes.bootstrap_lab import Lab
from scaler_wizard.recipes.bootstrap_preference import PairTraining, anchors_needed
from scaler_wizard.recipes.bootstrap_principles import (
    Kind,
    Probe,
    answer_probes,
    kept_by_principle,
    kept_stages,
    probes,
    request_of,
    shown_samples,
    triple_of,
    violations,
)
from scaler_wizard.recipes.bootstrap_sampling import Ask, Sampled
from scaler_wizard.recipes.bootstrap_stage import MOST_ATTEMPTS, Effort, phase_name
from scaler_wizard.recipes.bootstrap_teach import known_tasks
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.bootstrap import constitution_name
from scaler_wizard.specs.constitution import Constitution, read_constitution
from scaler_wizard.specs.constitution_section import PreferenceSection

NUMBER = 6
SHOWN_CRITIQUES = 8


@dataclass(frozen=True)
class ConstitutionStage:
    """The sixth stage."""

    number: int = NUMBER
    title: str = "a constitution"

    def run(self, lab: Lab, context: PhaseContext, effort: Effort) -> Metrics:
        """One attempt; see `bootstrap_stage.Stage`. Metrics hold the triple, critique and training as well.

        Raises:
            SpecError: a constitution that cannot be read.
        """
        started = time.monotonic()
        constitution = constitution_of(lab)
        where = f"stage{NUMBER}"
        asked = probes(lab, constitution)
        before = answer_probes(lab, context, f"{where}/before", asked)
        rows, data = self._data(lab, context, constitution, effort, where, asked)
        if not data["passed"]:
            return self._refused(lab, data, effort)
        making = time.monotonic() - started
        section = _preference(lab, effort)
        count = anchors_needed(section, sum(row.is_pair for row in rows), lab.job.training.max_steps)
        new_tasks = make_new_tasks(lab, context, f"{where}/made-{effort.attempt}", count)
        trained = self._train(lab, context, section, rows, anchor_rows(lab, rows, new_tasks, count), where)
        after = answer_probes(lab, context, f"{where}/after-{effort.attempt}", asked)
        answers, samples = lab.measure(
            context, f"{where}/measured-{effort.attempt}", SKILLS,
            [*known_tasks(lab), *(text for _, text in new_tasks)],
        )  # fmt: skip
        found = self._decide(lab, constitution, asked, before, after, answers)
        for reason in found["reasons"]:
            context.note(f"{'gate met' if found['passed'] else 'gate not met'}: {reason}")
        return {
            "stage": NUMBER, "skill": "constitution", "attempt": effort.attempt, "steps": trained["steps"],
            **found, "next": _next(found["passed"], effort), "weak": [], "answers": answers,
            "samples": samples, "constitution": _described(constitution),
            "requests": {kind: len(items) for kind, items in asked.items()},
            "answered": shown_samples(asked, before, after),
            "critiques": _critiques(rows),
            "preference": trained, "data": data, "replay": effort.replay,
            "seconds_making": round(making, 1),
        }  # fmt: skip

    # data

    def _data(
        self, lab: Lab, context: PhaseContext, constitution: Constitution, effort: Effort, where: str,
        asked: dict[Kind, list[Probe]],
    ) -> tuple[list[Critiqued], Metrics]:  # fmt: skip
        """Answers, critique, revision, negatives; written down, with what the gates and the checks say."""
        section, seed = lab.job.constitution, lab.job.training.seed
        count = round(section.prompts * (1 + lab.job.stages.more_data * (effort.attempt - 1)))
        tasks = lab.world.tasks("train", count, seed + NUMBER)
        requests = {task.id: request_of(task, number) for number, task in enumerate(tasks)}
        most = lab.job.sampling.max_new_tokens
        asks = [Ask(name, lab.turn(request), most) for name, request in requests.items()]
        attempt = f"{where}/made-{effort.attempt}"
        replies = [row[0] for row in lab.answers(context, attempt, "answers", asks)]
        answered = [
            (name, request, tidy(reply.text) if reply.ended else "")
            for (name, request), reply in zip(requests.items(), replies, strict=True)
        ]
        answering = lab.weights
        with judged_by(lab, constitution):
            rows, found = critique_answers(lab, context, attempt, constitution, answered)
        own = tuple(token for token in lab.session.tokenizer.all_special_tokens if token.strip())
        report = judge_generation(
            [_generated(row, reply) for row, reply in zip(rows, replies, strict=True)],
            known_prompts([probe.request for items in asked.values() for probe in items], near=False),
            GenerationLimits(own_tokens=own),
        )
        rows = filtered(lab, context, attempt, rows)
        rows = [*rows, *add_negatives(rows, section.negatives, seed)]
        about = {
            "stage": NUMBER, "seed": seed, "weights": answering, "constitution": constitution.name,
            "judge": constitution.judge, "critic": constitution.critic,
        }  # fmt: skip
        path = lab.directory(where) / f"rows-{effort.attempt}.jsonl"
        manifest = write_records(path, map(asdict, rows), about)
        kinds = Counter(row.kind for row in rows if row.is_pair)
        data: Metrics = {
            **report.as_dict(), **found, "file": str(path.relative_to(lab.run_dir.path)),
            "sha256": manifest.sha256, "kinds": dict(sorted(kinds.items())),
            "anchors": sum(row.kept and row.kind == "anchor" for row in rows),
        }  # fmt: skip
        context.note(_data_sentence(rows, found))
        shown = ("n", "kept", "kinds", "anchors", "critic", "pairs")
        context.probe("made_data", {key: data[key] for key in shown})
        return rows, data

    # training

    def _train(
        self, lab: Lab, context: PhaseContext, section: PreferenceSection, rows: Sequence[Critiqued],
        anchors: Sequence[TokenRow], where: str,
    ) -> Metrics:  # fmt: skip
        made = _token_pairs(lab, [row for row in rows if row.is_pair])
        phase = lab.plan.phase(phase_name(NUMBER, 1))
        return PairTraining(lab, context, phase, section, made, anchors, lab.directory(where)).run()

    # deciding

    def _decide(
        self, lab: Lab, constitution: Constitution, asked: dict[Kind, list[Probe]],
        before: dict[str, list[str]], after: dict[str, list[str]], answers: dict[str, list[bool]],
    ) -> Metrics:  # fmt: skip
        """The gate: every principle kept for certain, the triple, and nothing of stages 1 to 5 lost."""
        section = lab.job.constitution
        kept, left_out = kept_stages(lab, constitution, answers)
        decision = decide_stage(
            "constitution", kept_by_principle(constitution, asked, before, after), kept, share=section.share,
            least_n=lab.job.evaluation.least,
        )  # fmt: skip
        triple = triple_of(constitution, asked, before, after)
        safety = decide_safety(triple)
        passed = decision.passed and safety.passed
        verdicts = ((decision.passed, decision.reasons), (safety.passed, safety.reasons))
        reasons = [reason for good, said in verdicts if passed or not good for reason in said]
        return {
            "passed": passed, "reasons": reasons, "decision": decision.as_dict(),
            "accuracy": decision.correct / decision.n if decision.n else 0.0, "safety": safety.as_dict(),
            "triple": triple.as_dict(), "violations": violations(constitution, asked, before, after),
            "kept_and_right": {
                kind: {
                    "before": sum(a == p.keeping for p, a in zip(items, before[kind], strict=True)),
                    "after": sum(a == p.keeping for p, a in zip(items, after[kind], strict=True)),
                    "n": len(items),
                }
                for kind, items in asked.items()
            },
            "left_out_of_retention": left_out,
        }  # fmt: skip

    def _refused(self, lab: Lab, data: Metrics, effort: Effort) -> Metrics:
        """What is said where the data may not be trained on."""
        return {
            "stage": NUMBER, "skill": "constitution", "attempt": effort.attempt, "steps": 0, "passed": False,
            "next": "stop", "reasons": [f"made data: {reason}" for reason in data["reasons"]], "weak": [],
            "accuracy": None, "answers": {}, "samples": {}, "data": data, "replay": effort.replay,
            "decision": None,
        }  # fmt: skip


def _preference(lab: Lab, effort: Effort) -> PreferenceSection:
    """How an attempt trains: the last one with twice the anchors."""
    section = lab.job.constitution.preference
    if effort.attempt < MOST_ATTEMPTS:
        return section
    return section.model_copy(update={"anchors_per_pair": 2 * section.anchors_per_pair})


def _token_pairs(lab: Lab, pairs: Sequence[Critiqued]) -> list[TokenPair]:
    """Pairs whose answers both fit the context; a longer one would be cut, and half an answer is not one."""
    chosen = _whole_rows(lab, [(row.request, row.chosen) for row in pairs])
    rejected = _whole_rows(lab, [(row.request, row.initial_answer) for row in pairs])
    return [TokenPair(chosen[at], rejected[at]) for at in chosen if at in rejected]


def _whole_rows(lab: Lab, turns: Sequence[tuple[str, str]]) -> dict[int, TokenRow]:
    """Token rows by place, without those that were split."""
    rows = list(lab.rows(turns)) if turns else []
    pieces = Counter(row.number for row in rows)
    return {row.number: row for row in rows if pieces[row.number] == 1}


def constitution_of(lab: Lab) -> Constitution:
    """The job's constitution."""
    return read_constitution(constitution_name(lab.job))


def _described(constitution: Constitution) -> Metrics:
    rules = [
        {"id": rule.id, "category": rule.category, "text": rule.text, "exact": rule.check is not None,
         "applied": constitution.is_applied(rule)}
        for rule in constitution.principles
    ]  # fmt: skip
    return {
        "name": constitution.name, "judge": constitution.judge, "critic": constitution.critic,
        "principles": rules,
    }  # fmt: skip


def _next(passed: bool, effort: Effort) -> str:
    """More prompts, then more anchors, then the end with the evidence."""
    if passed:
        return "advance"
    return ("more_data", "more_replay")[effort.attempt - 1] if effort.attempt < MOST_ATTEMPTS else "stop"


def _generated(row: Critiqued, reply: Sampled) -> Generated:
    return Generated(row.request, reply.text, row.chosen, reply.ended, row.kept, row.reason)


def _critiques(rows: Sequence[Critiqued]) -> list[dict[str, Any]]:
    """The first few critiques that became pairs."""
    pairs = [row for row in rows if row.is_pair and row.kind == "critique"]
    return [
        {"request": row.request, "initial_answer": row.initial_answer[:400], "violated": list(row.violated),
         "critiques": [text[:400] for text in row.critiques], "revised_answer": row.chosen[:400]}
        for row in pairs[:SHOWN_CRITIQUES]
    ]  # fmt: skip


def _data_sentence(rows: Sequence[Critiqued], found: Metrics) -> str:
    gated, always = pair_metrics(rows)["gated"], found["pairs"]["revision_always_wins"]
    anchors = sum(row.kept and row.kind == "anchor" for row in rows)
    return (
        f"{gated['valid']:,} of {gated['n']:,} revisions are valid pairs (if the revision always won: "
        f"{always['valid']:,} of {always['n']:,}), {anchors:,} answers were cleared"
    )
