"""The world that a job names."""

from __future__ import annotations

from scaler_wizard.data.world import World
from scaler_wizard.data.world_embedded import LETTER_TASKS, EmbeddedWorld
from scaler_wizard.errors import SpecError
from scaler_wizard.specs.bootstrap import WorldSection


def open_world(section: WorldSection, examples: int) -> World:
    """The embedded world, or a person's own prompts.

    Args:
        examples: worked examples before a prompt of one's own where it has no document form.

    Raises:
        SpecError: unknown types. DataError: a file that cannot be read as prompts.
    """
    unknown = sorted(set(section.types) - set(LETTER_TASKS))
    if section.source == "embedded" and unknown:
        raise SpecError(
            f"world.types has {', '.join(unknown)}", f"some of {', '.join(LETTER_TASKS)}",
            "correct them, or leave world.types empty for all",
        )  # fmt: skip
    return EmbeddedWorld(section.types, section.levels)
