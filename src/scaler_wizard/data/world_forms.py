"""How stages 3 to 5 ask, how their replies are read, and answers that are wrong on purpose.

A judge writes the answer that it would give itself, then its verdict: "c b a, no". At the embedded model's
size a verdict of one token is hardly better than a guess, while comparing a draft with an own answer is
copying. Nothing here depends on the world but the tasks' own texts. Torch-free.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scaler_wizard.data.generators.example import first_answer
from scaler_wizard.data.generators.words import LETTERS
from scaler_wizard.data.world import Task

REFUSAL = "I cannot do that."
MAKE_WORDINGS = ("Make a task about {}.", "Write an exercise: {}", "Give me something to {}.")
Label = Literal["yes", "no", "A", "B"]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge said."""

    own: str
    """The answer that it would have given."""
    label: str
    """Its verdict; "" where it said none."""


def ask_to_make(kind: str, wording: int) -> str:
    """A request for a task of a type."""
    return MAKE_WORDINGS[wording % len(MAKE_WORDINGS)].format(kind)


def ask_if_right(task: Task, draft: str) -> str:
    """Whether a draft answers a task."""
    return f"Is this right? {task.explicit} = {draft}"


def ask_which(task: Task, first: str, second: str) -> str:
    """Which of two drafts answers a task."""
    return f"A or B? {task.explicit} A = {first} B = {second}"


def ask_to_fix(task: Task, draft: str) -> str:
    """A better answer than a draft, or the draft again where nothing is wrong with it."""
    return f"Fix this: {task.explicit} = {draft}"


def judgement(own: str, label: Label) -> str:
    """A judge's reply."""
    return f"{own}, {label}"


def read_judgement(output: str) -> Judged:
    """What a judge's raw continuation says; its label is "" where it is not one."""
    own, _, label = first_answer(output).rpartition(", ")
    return Judged(own, label if label in ("yes", "no", "A", "B") else "")


def wrong_answer(rng: random.Random, answer: str, task: Task) -> tuple[str, str]:
    """(kind, text) of an answer that is not `answer`, each kind as often as another where it is possible.

    incorrect   the right words in another order
    format      one word lost or doubled
    off_topic   words that have nothing to do with the task
    verbose     the answer, and then more
    refusal     no answer at all, where nothing is wrong with the task
    """
    kinds = ["incorrect", "format", "off_topic", "verbose", "refusal"]
    rng.shuffle(kinds)
    for kind in kinds:
        text = REFUSAL if kind == "refusal" else " ".join(_damaged(rng, kind, answer.split(), task))
        if text and text != answer:
            return kind, text
    return "refusal", REFUSAL


def _damaged(rng: random.Random, kind: str, words: Sequence[str], task: Task) -> list[str]:
    changed = list(words)
    if not changed:
        return changed
    at = rng.randrange(len(changed))
    if kind == "incorrect":
        rng.shuffle(changed)
    elif kind == "format" and rng.random() < 0.5:
        del changed[at]
    elif kind == "format":
        changed.insert(at, changed[at])
    elif kind == "off_topic":
        there = {*task.explicit.split(), *changed}
        changed = rng.choices([letter for letter in LETTERS if letter not in there], k=len(changed))
    elif kind == "verbose":
        changed += rng.choices(LETTERS, k=2)
    return changed
