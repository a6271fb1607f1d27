"""The world that a job names. Torch-free."""

from __future__ import annotations

from pathlib import Path

from scaler_wizard.data.world import World
from scaler_wizard.data.world_embedded import LETTER_TASKS, EmbeddedWorld
from scaler_wizard.data.world_file import FileWorld
from scaler_wizard.errors import DataError, SpecError
from scaler_wizard.specs.bootstrap import BootstrapJob


def open_world(job: BootstrapJob) -> World:
    """The embedded world, or a person's own prompts.

    Raises:
        SpecError: unknown types.
        DataError: a file that cannot be read as prompts, leaks, or has too few to measure by.
    """
    section = job.world
    if section.file is None:
        unknown = sorted(set(section.types) - set(LETTER_TASKS))
        if unknown:
            raise SpecError(
                f"world.types has {', '.join(unknown)}", f"some of {', '.join(LETTER_TASKS)}",
                "correct them, or leave world.types empty for all",
            )  # fmt: skip
        return EmbeddedWorld(section.types, section.levels)
    world = FileWorld(Path(section.file), job.sampling.examples)
    _check_questions(world, job)
    return world


def _check_questions(world: FileWorld, job: BootstrapJob) -> None:
    """Enough held-out prompts for the gates, and implicit questions where stage 2 is to learn them."""
    least = job.evaluation.least
    held_out = world.tasks("held_out", job.evaluation.questions, 0)
    questions = [task for task in held_out if task.implicit]
    found = len(held_out) if job.stages.last < 2 else min(len(held_out), len(questions))
    if found < least:
        what = "with an answer" if len(held_out) < least else "with an answer and a question (for stage 2)"
        raise DataError(
            f"{job.world.file} has {found:,} held-out prompts {what}",
            f"at least {least:,}, on which a gate may decide (evaluation.least)",
            'add rows with "answer" and "question", set stages.last: 1, or lower evaluation.least, which '
            "makes the gates weaker",
        )
