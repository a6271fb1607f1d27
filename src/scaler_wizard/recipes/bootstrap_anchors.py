"""What holds a model to what it can do while it learns to prefer: cleared answers, and rows of old skills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scaler_wizard.data.critique import tidy
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
"""How often the cleared answers stand among the anchors; of every other source as many rows as of them."""


def anchor_rows(lab: Lab, rows: Sequence[Critiqued], new_tasks: Sequence[Pair]) -> list[TokenRow]:
    """Answers that the critic cleared, rows of the stages that are no answers, and text of the base.

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
    found: list[TokenRow] = [*lab.rows(cleared)] * CLEARED_TIMES
    for number in REPLAYED:
        if lab.has_passed(number):
            found += list(lab.rows(stage_pairs(lab, number)))[: len(cleared)]
    found += list(lab.rows(new_tasks))[: len(cleared)] if new_tasks else []
    return [*found, *list(lab.text_rows(lab.base_texts()))[: len(cleared)]]


def make_new_tasks(lab: Lab, context: PhaseContext, where: str, draw: int) -> list[Pair]:
    """Requests for a task, and tasks that the session's model makes when asked for one; none before stage 3.

    The third stage's own rows would be learned by heart: of 125 new tasks 67 were left with 68 of them as
    anchors, 106 with 605.

    Args:
        draw: names the draw of the types that are asked for.
    """
    if not lab.has_passed(3):
        return []
    tasks = lab.world.tasks("train", lab.job.constitution.prompts, lab.job.training.seed + draw)
    prompts = [ask_to_make(task.type, number) for number, task in enumerate(tasks)]
    asks = [
        Ask(
            f"{number}/{task.id}", lab.turn(prompt), lab.job.sampling.max_new_tokens, samples=1,
            greedy=False, temperature=lab.job.sampling.temperature,
        )
        for number, (task, prompt) in enumerate(zip(tasks, prompts, strict=True))
    ]  # fmt: skip
    found = [row[0] for row in lab.answers(context, where, "tasks", asks)]
    known = set(known_tasks(lab))
    made: list[Pair] = []
    for prompt, one in zip(prompts, found, strict=True):
        text = tidy(one.text)
        read = lab.world.read(text)
        held_out = read is not None and lab.world.is_held_out(read)
        if one.ended and text and text not in known and not held_out:
            known.add(text)
            made.append((prompt, text))
    return made
