"""What holds a model to what it can do while it learns to prefer: cleared answers, and rows of old skills."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Final

from scaler_wizard.data.critique import tidy
from scaler_wizard.data.generators.example import is_held_out_text
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.world_forms import ask_to_make
from scaler_wizard.errors import EmptyDataError
from scaler_wizard.recipes.bootstrap_critique import Critiqued
from scaler_wizard.recipes.bootstrap_lab import Lab, Pair
from scaler_wizard.recipes.bootstrap_sampling import Ask
from scaler_wizard.recipes.bootstrap_teach import known_tasks, stage_pairs
from scaler_wizard.runs.context import PhaseContext

REPLAYED: Final = (4, 5)
"""Stages whose rows are anchors: what stages 1 and 2 taught is in the answers that the critic cleared, and
stage 3 in tasks that are made anew."""
CLEARED_TIMES: Final = 2
"""The cleared answers are so many times as many anchors as every other source."""
SOURCES: Final = CLEARED_TIMES + len(REPLAYED) + 2
"""Parts of the anchors, all as large: those, new tasks, and text of the base."""
KEPT_OF_ASKED: Final = 0.75
"""About so many of the new tasks that are asked for are used: a fifth are the evaluation's, some repeat."""
MOST_TASKS_PER_PROMPT: Final = 4
"""New tasks for each of the stage's prompts, at most; a longer training goes through them again."""


def anchor_rows(
    lab: Lab, rows: Sequence[Critiqued], new_tasks: Sequence[Pair], count: int
) -> list[TokenRow]:  # fmt: skip
    """`count` anchors, all that a training takes: answers that the critic cleared, rows of the stages that
    are no answers, new tasks and text of the base, in equal parts, each gone through as often as it takes.

    Raises:
        EmptyDataError: the critic cleared nothing.
    """
    cleared = [(row.request, row.initial_answer) for row in rows if row.kept and row.kind == "anchor"]
    if not cleared:
        raise EmptyDataError(
            f"not one of {len(rows):,} answers was cleared by every principle",
            "answers that keep to the constitution, which hold the model to what it does well",
            "look at the reasons in the stage's records: a critic that doubts everything is no critic",
        )
    parts: list[Sequence[TokenRow]] = [list(lab.rows(cleared))] * CLEARED_TIMES
    parts += [list(lab.rows(stage_pairs(lab, number))) for number in REPLAYED if lab.has_passed(number)]
    parts += [list(lab.rows(new_tasks)) if new_tasks else [], list(lab.text_rows(lab.base_texts()))]
    return list(islice(_by_turns([part for part in parts if part]), count))


def _by_turns(parts: Sequence[Sequence[TokenRow]]) -> Iterator[TokenRow]:
    """A row of each part by turns, without end; a part that is used up begins again."""
    for turn in zip(*map(cycle, parts), strict=True):
        yield from turn


def make_new_tasks(lab: Lab, context: PhaseContext, where: str, anchors: int) -> list[Pair]:
    """Requests for a task, and tasks that the session's model makes when asked for one; none before stage 3.

    So many that none of them is learned twice, and drawn at a temperature of 1, so that learning them leaves
    the model's own distribution as it is. With 476 drawn at 0.7, each learned three times, tasks that are
    right fell from 532 to 500 of 600: more repeated each other or an anchor (5 before, 37 after), and more
    were malformed (42, 52). Stage 3's own rows would be learned by heart even more.

    Args:
        anchors: anchors that the training takes, of which new tasks are one part.
    """
    if not lab.has_passed(3) or not anchors:
        return []
    types = lab.world.types
    wanted = min(
        round(anchors / SOURCES / KEPT_OF_ASKED), MOST_TASKS_PER_PROMPT * lab.job.constitution.prompts
    )
    prompts = [ask_to_make(types[number % len(types)], number) for number in range(wanted)]
    asks = [
        Ask(str(number), lab.turn(prompt), lab.job.sampling.max_new_tokens, samples=1, greedy=False)
        for number, prompt in enumerate(prompts)
    ]
    found = [row[0] for row in lab.answers(context, where, "tasks", asks)]
    known = set(known_tasks(lab))
    made: list[Pair] = []
    for prompt, one in zip(prompts, found, strict=True):
        text = tidy(one.text)
        read = lab.world.read(text)
        # As many of those that are no task are left out: learning the rest would teach to make more of them.
        held_out = is_held_out_text(text) if read is None else lab.world.is_held_out(read)
        if one.ended and text and text not in known and not held_out:
            known.add(text)
            made.append((prompt, text))
    return made
