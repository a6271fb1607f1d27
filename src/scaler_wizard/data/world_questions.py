"""What is asked to measure each skill: fixed questions over held-out tasks, each with its exact check.

The same questions go to every stage's model, so that answers can be paired. Torch-free.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scaler_wizard.data.generators.example import first_answer
from scaler_wizard.data.world import Checked, Skill, Split, Task, World
from scaler_wizard.data.world_forms import (
    RIGHT,
    ask_if_right,
    ask_to_fix,
    ask_to_make,
    ask_which,
    judgement,
    read_verdict,
    wrong_answer,
)

MAKE_TEMPERATURE = 0.7
"""Letters stay nearly as evenly drawn as at 1, where a small model slips once in a few tokens."""
Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One thing that is asked of every stage's model. Right where each of its prompts is answered rightly."""

    id: str
    skill: Skill
    type: str
    task: Task
    prompts: Parts
    """What is asked, as user turns; two where both orders are asked."""
    expected: Parts
    """The end of each right reply: an answer, a verdict; a type where a task is to be made."""
    temperature: float = 0.0
    """Above 0 where one prompt is asked often and different replies are wanted."""
    kind: str = ""
    """What is wrong with the draft that is judged or revised; "right" where nothing is."""
    compared: Parts = ()
    """Where drafts are judged: the draft of each prompt, the first of two."""

    @property
    def replies(self) -> Parts:
        """A right reply to each prompt, as a worked example shows it."""
        if self.skill == "make":
            return (self.task.explicit,)
        if self.skill == "evaluate":
            own = self.task.answer or ""
            return tuple(
                judgement(own, draft, label)
                for draft, label in zip(self.compared, self.expected, strict=True)
            )
        return self.expected


def questions(
    world: World, skill: Skill, n: int, seed: int, split: Split = "held_out"
) -> tuple[Question, ...]:
    """At most `n` questions on one skill, a function of the arguments; tasks without known answers have none.

    Tasks to make are asked for by type: the same request often, each time with a random generator of its own.
    """
    tasks = [task for task in world.tasks(split, n, seed) if task.answer is not None]
    found = []
    for number, task in enumerate(tasks):
        question = _question(skill, task, number, seed)
        if question is not None:
            found.append(question)
    return tuple(found)


def _question(skill: Skill, task: Task, number: int, seed: int) -> Question | None:
    answer = task.answer
    assert answer is not None
    name = f"{skill}/{task.id}"
    rng = random.Random(f"question/{seed}/{name}")
    if skill == "explicit":
        return Question(name, skill, task.type, task, (task.explicit,), (answer,))
    if skill == "implicit":
        if task.implicit is None:
            return None
        return Question(name, skill, task.type, task, (task.implicit,), (answer,))
    if skill == "make":
        asked = ask_to_make(task.type, rng.randrange(1 << 16))
        return Question(name, skill, task.type, task, (asked,), (task.type,), temperature=MAKE_TEMPERATURE)
    kind, wrong = wrong_answer(rng, answer, task)
    if skill == "evaluate" and number % 2:
        pair = (ask_which(task, answer, wrong), ask_which(task, wrong, answer))
        return Question(name, skill, task.type, task, pair, ("A", "B"), kind=kind, compared=(answer, wrong))
    # An answer that is right must be left alone as often as a wrong one is found.
    if (number // 2) % 2:
        kind, draft = RIGHT, answer
    else:
        draft = wrong
    if skill == "evaluate":
        label = "yes" if draft == answer else "no"
        asked = ask_if_right(task, draft)
        return Question(name, skill, task.type, task, (asked,), (label,), kind=kind, compared=(draft,))
    return Question(name, skill, task.type, task, (ask_to_fix(task, draft),), (answer,), kind=kind)


def check(
    world: World, question: Question, replies: Sequence[str], known: Collection[str] = (),
    given: Collection[str] = (),
) -> Checked:  # fmt: skip
    """Whether the replies to a question's prompts are right.

    Args:
        known: tasks (as `Task.explicit`) that a made one must differ from: those the model was taught on.
        given: replies given to earlier questions, from which a made task must differ too.
    """
    if question.skill == "make":
        return made_task(world, question.type, replies[0], known, given)
    for reply, expected in zip(replies, question.expected, strict=True):
        if question.skill == "evaluate":
            label = read_verdict(reply)
            if label != expected:
                return Checked(False, "no verdict" if not label else f"{label} instead of {expected}")
        elif not world.verify(question.task, reply):
            return Checked(False, "another answer")
    return Checked(True)


def made_task(
    world: World, kind: str, reply: str, known: Collection[str] = (), given: Collection[str] = ()
) -> Checked:
    """Whether a reply is a well-formed task of a type, and a new one."""
    text = first_answer(reply)
    task = world.read(text)
    if not text or (world.reads_tasks and task is None):
        return Checked(False, "not a task")
    if task is not None and task.type != kind:
        return Checked(False, f"a task of type {task.type}")
    if text in known:
        return Checked(False, "a task that it was taught on")
    if text in given:
        return Checked(False, "a task that it has made before")
    return Checked(True)
