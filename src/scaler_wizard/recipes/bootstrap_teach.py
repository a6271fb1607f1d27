"""Stages 1 to 5: make data with the model before, look at it, train, measure, decide. One class for all five.

What differs is how the data is made (`bootstrap_skills`) and which skill is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle

from scaler_wizard.data.diversity import MadeTasks
from scaler_wizard.data.generation_gates import (
    GenerationLimits,
    decide_pilot,
    judge_generation,
    known_prompts,
    pilot_size,
)
from scaler_wizard.data.records import write_records
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.world import SKILLS, Skill, Task
from scaler_wizard.evals.promotion import Change
from scaler_wizard.evals.stage_gate import Kept, StageDecision, decide_stage, next_step
from scaler_wizard.recipes.bootstrap_data import MadeRow, judge_agreement, kept_pairs, made_tasks, precision
from scaler_wizard.recipes.bootstrap_lab import Lab, Pair
from scaler_wizard.recipes.bootstrap_skills import (
    Batch,
    Maker,
    make_explicit,
    make_implicit,
    make_judgements,
    make_revisions,
    make_tasks,
)
from scaler_wizard.recipes.bootstrap_stage import Effort, phase_name
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.bootstrap import StageSection

PROMPTS_TOO = 0.5
"""Share of the instructions that are trained on as well: the model of stage 2 is to go on as who asks."""

DIFFERENT = GenerationLimits().different_tasks
"""Tasks that stage 3 is to learn to make, of those asked for: so many must repeat no other."""
DIFFERENT_MATERIAL = 1 - GenerationLimits().near_duplicates
"""Tasks that are judged or mended, where a repetition is left out: the limit that holds for rows elsewhere.
Set after the demo's fifth stage had 94.4% and was refused with stage 3's limit; other runs had 96% to 98%."""


@dataclass(frozen=True)
class TeachStage:
    """One of the stages 1 to 5."""

    number: int
    skill: Skill
    title: str
    make: Maker
    prompts_too: float = 0.0
    makes_tasks: bool = False
    """Whether its rows are about tasks that the model makes: then these are compared, not the rows."""

    def section(self, lab: Lab) -> StageSection:
        """The job's settings of this stage."""
        section: StageSection = getattr(lab.job.stages, self.skill)
        return section

    def run(self, lab: Lab, context: PhaseContext, effort: Effort) -> Metrics:
        """One attempt; see `bootstrap_stage.Stage`."""
        started = time.monotonic()
        where = f"stage{self.number}"
        made, report = self._data(lab, context, effort, where)
        path = lab.directory(where) / f"rows-{effort.attempt}.jsonl"
        about = {
            "stage": self.number,
            "skill": self.skill,
            "seed": lab.job.training.seed,
            "weights": lab.weights,
        }
        manifest = write_records(path, map(asdict, made), about)
        data: Metrics = {
            **report, "file": str(path.relative_to(lab.run_dir.path)), "sha256": manifest.sha256,
            "precision": precision(made), "judge": judge_agreement(made),
        }  # fmt: skip
        context.note(_data_sentence(made, data))
        if not report["passed"]:
            return self._refused(lab, data, effort)
        context.probe("made_data", {key: data[key] for key in ("n", "kept", "precision", "shares")})
        making = time.monotonic() - started
        steps = self._train(lab, context, effort, made)
        skills = SKILLS[: min(self.number + 1, len(SKILLS))]
        known = [row.answer for row in made if row.kept] if self.skill == "make" else known_tasks(lab)
        answers, samples = lab.measure(context, f"{where}/measured-{effort.attempt}", skills, known)
        decision = self.decide(lab, answers)
        earlier = [self.decide(lab, found["answers"]) for found in self._attempts(lab) if found["answers"]]
        for reason in decision.reasons:
            context.note(f"{'gate met' if decision.passed else 'gate not met'}: {reason}")
        return {
            "stage": self.number, "skill": self.skill, "attempt": effort.attempt, "steps": steps,
            "passed": decision.passed, "next": next_step([*earlier, decision]),
            "reasons": list(decision.reasons), "weak": list(decision.weak), "decision": decision.as_dict(),
            "accuracy": decision.correct / decision.n, "kinds": self._kinds(lab, answers),
            "answers": answers, "samples": samples, "data": data,
            "replay": effort.replay, "seconds_making": round(making, 1),
        }  # fmt: skip

    # data

    def _data(
        self, lab: Lab, context: PhaseContext, effort: Effort, where: str
    ) -> tuple[list[MadeRow], Metrics]:
        """A pilot, then the rest; all rows, and the data gates' report as metrics."""
        seed = lab.job.training.seed
        tasks = self._tasks(lab, effort)
        evaluation = known_prompts(
            [prompt for skill in (self.skill,) if skill != "make"
             for question in lab.all_questions[skill] for prompt in question.prompts], near=False,
        )  # fmt: skip
        limits = GenerationLimits(
            different_tasks=DIFFERENT if self.skill == "make" else DIFFERENT_MATERIAL,
            own_tokens=tuple(token for token in lab.session.tokenizer.all_special_tokens if token.strip()),
        )
        pilot = pilot_size(len(tasks))
        made = self.make(lab, context, Batch(where, "pilot", tasks[:pilot], seed))
        report = judge_generation(
            [row.generated() for row in made], evaluation, limits, self._made_tasks(lab, made, pilot)
        )
        decided = decide_pilot(report, pilot)
        if not decided.passed:
            context.note(f"the pilot of {report.n} rows did not pass: {'; '.join(decided.reasons)}")
            return made, {**report.as_dict(), **decided.as_dict(), "pilot": True}
        made += self.make(lab, context, Batch(where, "rest", tasks[pilot:], seed))
        made = _asked_once(made)
        report = judge_generation(
            [row.generated() for row in made], evaluation, limits, self._made_tasks(lab, made, len(tasks))
        )
        return made, {**report.as_dict(), "pilot": False}

    def _made_tasks(self, lab: Lab, made: Sequence[MadeRow], asked: int) -> MadeTasks | None:
        return made_tasks(lab, made, asked) if self.makes_tasks else None

    def _tasks(self, lab: Lab, effort: Effort) -> tuple[Task, ...]:
        """Tasks of the training side: the stage's own number, and more of weak types in later attempts."""
        section, seed = self.section(lab), lab.job.training.seed
        first = lab.world.tasks("train", section.prompts, seed + self.number)
        if effort.attempt == 1:
            return first
        extra = round(section.prompts * lab.job.stages.more_data * (effort.attempt - 1))
        known = {task.id for task in first}
        more = lab.world.tasks("train", extra, seed + self.number + 1000, effort.weak or None)
        return (*first, *(task for task in more if task.id not in known))

    # training

    def _train(self, lab: Lab, context: PhaseContext, effort: Effort, made: Sequence[MadeRow]) -> int:
        section = self.section(lab)
        steps = section.steps or lab.job.training.max_steps
        if effort.attempt > 1:
            steps = round(steps * (1 + lab.job.stages.more_data))
        pairs = [row.pair for row in made if row.kept]
        return lab.train(
            context, lab.plan.phase(phase_name(self.number, 1)),
            lab.rows(pairs, prompts_too=self.prompts_too), replay_rows(lab, self.number), steps,
            effort.replay, section.learning_rate,
        )  # fmt: skip

    # deciding

    def decide(self, lab: Lab, answers: dict[str, list[bool]]) -> StageDecision:
        """The gate on one attempt's answers; the comparison is with the model before this stage."""
        section, before = self.section(lab), lab.passed_answers(self.number - 1)
        types = [question.type for question in lab.all_questions[self.skill]]
        by_type = [
            Change(kind, _of(types, kind, before[self.skill]), _of(types, kind, answers[self.skill]))
            for kind in dict.fromkeys(types)
        ]
        kept = [
            Kept(
                skill,
                Change(skill, tuple(lab.passed_answers(number)[skill]), tuple(answers[skill])),
                lab.share_of(skill),
            )
            for number, skill in enumerate(SKILLS[: self.number - 1], start=1)
        ]
        return decide_stage(self.skill, by_type, kept, share=section.share, least_n=lab.job.evaluation.least)

    def _kinds(self, lab: Lab, answers: dict[str, list[bool]]) -> dict[str, list[int]]:
        """[right, questions] by what was wrong with the draft that was judged or mended."""
        found: dict[str, list[int]] = {}
        for question, right in zip(lab.all_questions[self.skill], answers[self.skill], strict=True):
            counts = found.setdefault(question.kind, [0, 0])
            counts[0] += right
            counts[1] += 1
        return {kind: counts for kind, counts in sorted(found.items()) if kind}

    def _attempts(self, lab: Lab) -> list[Metrics]:
        """Metrics of this stage's earlier attempts."""
        return [found for found in lab.done.values() if found.get("stage") == self.number]

    def _refused(self, lab: Lab, data: Metrics, effort: Effort) -> Metrics:
        """What is said where the data may not be trained on: making more of the same would not help."""
        return {
            "stage": self.number, "skill": self.skill, "attempt": effort.attempt, "steps": 0, "passed": False,
            "next": "stop", "reasons": [f"made data: {reason}" for reason in data["reasons"]], "weak": [],
            "accuracy": None, "answers": {}, "samples": {}, "data": data, "replay": effort.replay,
            "decision": None,
        }  # fmt: skip


STAGES = (
    TeachStage(1, "explicit", "explicit instructions", make_explicit, PROMPTS_TOO),
    TeachStage(2, "implicit", "implicit instructions", make_implicit),
    # A request for a task is the same every time, and a task is judged and mended twice: with another draft.
    TeachStage(3, "make", "making tasks", make_tasks, makes_tasks=True),
    TeachStage(4, "evaluate", "judging answers", make_judgements, makes_tasks=True),
    TeachStage(5, "revise", "mending answers", make_revisions, makes_tasks=True),
)


def stage_pairs(lab: Lab, number: int) -> list[Pair]:
    """Kept rows of a stage that has passed."""
    data = lab.passed(number)["data"]
    return kept_pairs(lab.run_dir.path / data["file"], data["sha256"])


def known_tasks(lab: Lab) -> list[str]:
    """Tasks that the third stage was taught to make, once it has passed."""
    return [answer for _, answer in stage_pairs(lab, 3)] if lab.has_passed(3) else []


def replay_rows(lab: Lab, number: int) -> list[TokenRow]:
    """What is replayed, as many tokens of each: text that the base wrote, rows of every earlier stage.

    With half of it the base's own text, what was left for each of four stages was too little: the fifth took
    19 of 132 right judgements away.
    """
    sources: list[list[TokenRow]] = [list(lab.text_rows(lab.base_texts()))]
    for earlier in range(1, number):
        if lab.has_passed(earlier):
            sources.append(
                list(lab.rows(stage_pairs(lab, earlier), prompts_too=STAGES[earlier - 1].prompts_too))
            )
    return balanced(sources)


def balanced(sources: Sequence[Sequence[TokenRow]]) -> list[TokenRow]:
    """Rows of every source; smaller ones are repeated until all have as many tokens, give or take a row.

    By rows alone the judgements of stage 4, twice as many and twice as long, were most of what stage 5 saw:
    it forgot a tenth of stages 2 and 3.
    """
    filled = [source for source in sources if source]
    most = max((sum(len(row.ids) for row in source) for source in filled), default=0)
    rows: list[TokenRow] = []
    for source in filled:
        tokens = 0
        for row in cycle(source):
            rows.append(row)
            tokens += len(row.ids)
            if tokens >= most:
                break
    return rows


def _asked_once(rows: Sequence[MadeRow]) -> list[MadeRow]:
    """Kept rows that repeat an earlier one, question and answer, are not kept."""
    seen: set[Pair] = set()
    told = []
    for row in rows:
        told.append(row.rejected("made before") if row.kept and row.pair in seen else row)
        seen.add(row.pair)
    return told


def _of(types: Sequence[str], kind: str, answers: Sequence[bool]) -> tuple[bool, ...]:
    return tuple(answer for name, answer in zip(types, answers, strict=True) if name == kind)


def _data_sentence(made: Sequence[MadeRow], data: Metrics) -> str:
    found = data["precision"]
    told = f"{data['kept']:,} of {len(made):,} made rows are kept"
    if found["kept"] is None:
        return f"{told}; nobody can say how many of them are right"
    return f"{told}; {found['kept']:.1%} of those are right, {found['before']:.1%} of all were"
