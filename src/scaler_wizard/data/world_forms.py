"""How stages 3 to 5 ask, how their replies are read, and answers that are wrong on purpose.

A judge answers itself and reads the draft, word by word in turns, up to the first word that differs, then
says its verdict: "c c b b a x, no". Of two drafts it reads the first: where that differs, the other is meant.
So each token is a word of the answer, a copy, or follows from the two before it. At the embedded model's size
a verdict of one token is hardly better than a guess, and one behind a whole answer of its own ("c b a, no")
went by length: of 24 drafts of wrong letters, as many as there should be, it found none.
Nothing here depends on the world but the tasks' own texts. Torch-free.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from scaler_wizard.data.generators.example import first_answer
from scaler_wizard.data.generators.words import LETTERS
from scaler_wizard.data.world import Task

REFUSAL = "I cannot do that."
MAKE_WORDINGS = ("Make a task about {}.", "Write an exercise: {}", "Give me something to {}.")
END = "."
"""Stands for the end of an answer where it is compared: a longer one differs there."""
RIGHT = "right"
"""Kind of a draft that nothing is wrong with."""
VERDICTS = ("yes", "no", "A", "B")


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


def judgement(own: str, draft: str, label: str) -> str:
    """A judge's reply.

    Args:
        own: the answer that it would give itself.
        draft: what is compared with it: the draft, the first of two.
        label: its verdict, one of `VERDICTS`.
    """
    return f"{' '.join(_beside(own, draft))}, {label}"


def judgements(task: Task, own: str, draft: str, kind: str) -> tuple[tuple[str, str, str], ...]:
    """(what is asked, what is replied, what is wrong with the draft) of a draft that differs from `own`."""
    return (
        (ask_if_right(task, draft), judgement(own, draft, "no"), kind),
        (ask_if_right(task, own), judgement(own, own, "yes"), RIGHT),
        (ask_which(task, own, draft), judgement(own, own, "A"), kind),
        (ask_which(task, draft, own), judgement(own, draft, "B"), kind),
    )


def _beside(own: str, draft: str) -> Iterator[str]:
    """Words of both in turns and the end of both, up to the first that differ."""
    for mine, theirs in zip_longest([*own.split(), END], [*draft.split(), END], fillvalue=END):
        yield f"{mine} {theirs}"
        if mine != theirs:
            return


def read_verdict(output: str) -> str:
    """The label that a judge's raw continuation ends with; "" where it says none."""
    label = first_answer(output).rpartition(", ")[2]
    return label if label in VERDICTS else ""


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
