"""How stages 1 to 5 make their data, each with the model of the stage before it.

1 explicit   the base answers tasks as documents; what its samples agree on answers the instruction
2 implicit   stage 1 answers the instruction; the question that implies it gets the same answer
3 make       stage 2 goes on as the one who asks; what it can answer itself is a task of the kind it began as
4 evaluate   stage 3 makes tasks and answers them; drafts are read beside its own answer, word by word, and
             the verdict follows from the first that differs
5 revise     stage 4 makes, answers and judges drafts; wrong ones are answered again, right ones left alone
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scaler_wizard.data.generators.example import first_answer
from scaler_wizard.data.world import Task
from scaler_wizard.data.world_forms import (
    RIGHT,
    ask_if_right,
    ask_to_fix,
    ask_to_make,
    judgements,
    read_verdict,
    wrong_answer,
)
from scaler_wizard.recipes.bootstrap_data import Agreed, MadeRow, agreed_answers
from scaler_wizard.recipes.bootstrap_lab import Lab
from scaler_wizard.recipes.bootstrap_sampling import Ask
from scaler_wizard.runs.context import PhaseContext

HELD_OUT = "a task of the evaluation"


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call is to make rows for: part of a stage's tasks."""

    where: str
    """Directory of the stage."""
    name: str
    """pilot, rest or more: names the chunks."""
    tasks: Sequence[Task]
    """Tasks of the training side. Stages 3 to 5 take only their types, and their wording to begin with."""
    seed: int

    def rng(self, *parts: object) -> random.Random:
        """A generator for one decision."""
        return random.Random("/".join(map(str, (self.seed, self.where, self.name, *parts))))


Maker = Callable[[Lab, PhaseContext, Batch], list[MadeRow]]


def make_explicit(lab: Lab, context: PhaseContext, batch: Batch) -> list[MadeRow]:
    """Instructions, answered by the base in document form."""
    prompts = [(task.id, lab.document(task.document)) for task in batch.tasks]
    agreed = agreed_answers(lab, context, batch.where, f"{batch.name}-documents", prompts, lines=True)
    return [
        _answered(lab, "explicit", task, task.explicit, found)
        for task, found in zip(batch.tasks, agreed, strict=True)
    ]


def make_implicit(lab: Lab, context: PhaseContext, batch: Batch) -> list[MadeRow]:
    """Questions, answered by stage 1 as the instruction that they imply."""
    tasks = [task for task in batch.tasks if task.implicit]
    prompts = [(task.id, lab.turn(task.explicit)) for task in tasks]
    agreed = agreed_answers(lab, context, batch.where, f"{batch.name}-instructions", prompts)
    return [
        _answered(lab, "implicit", task, task.implicit or "", found)
        for task, found in zip(tasks, agreed, strict=True)
    ]


def _answered(lab: Lab, skill: str, task: Task, prompt: str, found: Agreed) -> MadeRow:
    row = MadeRow(
        task.id, skill, task.type, prompt, found.text, found.raw, found.ended, found.agreement,
        found.confidence, not found.reason, found.reason,
        lab.world.verify(task, found.text) if task.answer is not None else None,
    )  # fmt: skip
    return row.rejected(HELD_OUT) if lab.world.is_held_out(task) else row


def make_tasks(lab: Lab, context: PhaseContext, batch: Batch) -> list[MadeRow]:
    """New tasks of a type: stage 2 goes on from the first words of an instruction, then answers it."""
    openings = [opening_of(task.explicit) for task in batch.tasks]
    asks = [
        Ask(
            task.id,
            lab.turn_opening(opening),
            lab.job.sampling.max_new_tokens,
            samples=1,
            greedy=False,
            temperature=lab.job.sampling.temperature,
        )
        for task, opening in zip(batch.tasks, openings, strict=True)
    ]
    found = [row[0] for row in lab.answers(context, batch.where, f"{batch.name}-tasks", asks, lines=True)]
    texts = [first_answer(opening + item.text) for opening, item in zip(openings, found, strict=True)]
    prompts = [(task.id, lab.turn(text)) for task, text in zip(batch.tasks, texts, strict=True)]
    agreed = agreed_answers(lab, context, batch.where, f"{batch.name}-own-answers", prompts)
    rows = []
    for task, text, item, own in zip(batch.tasks, texts, found, agreed, strict=True):
        read = lab.world.read(text) or unread(task.type, text)
        right = lab.world.read(text) is not None and read.type == task.type
        wording = batch.rng("wording", task.id).randrange(1 << 16)
        row = MadeRow(
            task.id, "make", task.type, ask_to_make(task.type, wording), text, item.text, item.ended,
            own.agreement, own.confidence, right=right if lab.world.reads_tasks else None, task=text,
        )  # fmt: skip
        if not item.ended:
            row = row.rejected("token limit")
        if own.reason:
            row = row.rejected(f"its own answer: {own.reason}")
        if lab.world.is_held_out(read):
            row = row.rejected(HELD_OUT)
        rows.append(row)
    return _once(rows)


def unread(kind: str, text: str) -> Task:
    """A task that the world cannot read: nothing of it is known but its text."""
    return Task(kind, "", "", text)


def opening_of(instruction: str) -> str:
    """What an instruction begins with: up to its colon, else the first half of its words."""
    head, colon, _ = instruction.partition(":")
    if colon:
        return head + colon
    words = instruction.split()
    return " ".join(words[: max(1, len(words) // 2)])


def _once(rows: Sequence[MadeRow]) -> list[MadeRow]:
    """Kept answers only the first time."""
    seen: set[str] = set()
    told = []
    for row in rows:
        told.append(row.rejected("made before") if row.answer in seen else row)
        seen.add(row.answer)
    return told


@dataclass(frozen=True, slots=True)
class Drafted:
    """A task of the model's own, its own answer, and a draft that may be another."""

    task: Task
    own: Agreed
    draft: str
    kind: str
    """What is wrong with the draft: "sampled" by the model itself, or what was done to its answer."""


def drafts(lab: Lab, context: PhaseContext, batch: Batch) -> list[Drafted]:
    """Tasks that the model makes and answers, each with a draft that its own answer contradicts.

    Where the model's samples all agree, the draft is its answer damaged by a rule.
    """
    section = lab.job.sampling
    asks = [
        Ask(task.id, lab.turn(ask_to_make(task.type, batch.rng("wording", task.id).randrange(1 << 16))),
            section.max_new_tokens, samples=1, greedy=False, temperature=section.temperature)
        for task in batch.tasks
    ]  # fmt: skip
    made = [row[0] for row in lab.answers(context, batch.where, f"{batch.name}-tasks", asks)]
    tasks: dict[str, Task] = {}
    for seed_task, item in zip(batch.tasks, made, strict=True):
        text = first_answer(item.text)
        if item.ended and text and text not in tasks:
            tasks[text] = lab.world.read(text) or unread(seed_task.type, text)
    found = list(tasks.values())
    own = agreed_answers(
        lab,
        context,
        batch.where,
        f"{batch.name}-own-answers",
        [(task.id, lab.turn(task.explicit)) for task in found],
    )
    drafted = []
    for task, answer in zip(found, own, strict=True):
        rng = batch.rng("draft", task.id)
        others = sorted({sample for sample in answer.samples if sample and sample != answer.text})
        if others:
            kind, draft = "sampled", rng.choice(others)
        else:
            kind, draft = wrong_answer(rng, answer.text, task)
        drafted.append(Drafted(task, answer, draft, kind))
    return drafted


def make_judgements(lab: Lab, context: PhaseContext, batch: Batch) -> list[MadeRow]:
    """Drafts judged by comparing them with the model's own answer: alone and beside it, in both orders."""
    return [
        _judged(lab, item, "evaluate", prompt, reply, kind)
        for item in drafts(lab, context, batch)
        for prompt, reply, kind in judgements(item.task, item.own.text, item.draft, item.kind)
    ]


def make_revisions(lab: Lab, context: PhaseContext, batch: Batch) -> list[MadeRow]:
    """Drafts that stage 4 judges: mended where they are wrong, left alone where they are right.

    Which is which the plain comparison with an answer given afresh decides: at the embedded model's size it
    is right more often than the judge's own verdict, which each row keeps beside it.
    """
    found = drafts(lab, context, batch)
    offered = [(item, text) for item in found for text in (item.draft, item.own.text)]
    most = lab.job.sampling.max_new_tokens
    asks = [
        Ask(f"{item.task.id}/{text}", lab.turn(ask_if_right(item.task, text)), most) for item, text in offered
    ]
    verdicts = [row[0] for row in lab.answers(context, batch.where, f"{batch.name}-verdicts", asks)]
    rows = []
    for (item, text), verdict in zip(offered, verdicts, strict=True):
        kind = RIGHT if text == item.own.text else item.kind
        row = _judged(lab, item, "revise", ask_to_fix(item.task, text), item.own.text, kind)
        rows.append(replace(row, verdict=read_verdict(verdict.text)))
    return rows


def _judged(lab: Lab, item: Drafted, skill: str, prompt: str, answer: str, kind: str) -> MadeRow:
    task, own = item.task, item.own
    # A right answer makes both the verdict and the revision right: the draft differs from it.
    right = lab.world.verify(task, own.text) if task.answer is not None else None
    row = MadeRow(
        f"{task.id}/{prompt}", skill, task.type, prompt, answer, own.raw, own.ended, own.agreement,
        own.confidence, not own.reason, own.reason, right, kind, task=task.explicit,
    )  # fmt: skip
    return row.rejected(HELD_OUT) if lab.world.is_held_out(task) else row
