"""Names in a config that stand for something in the data room, checked before anybody signs them."""

from __future__ import annotations

from scaler_wizard.data.generators import GENERATORS
from scaler_wizard.data.profiles import PROFILES
from scaler_wizard.errors import SpecError
from scaler_wizard.specs.base import nearest_key
from scaler_wizard.specs.continual import ContinualConfig


def check_names(config: ContinualConfig) -> None:
    """Refuse generated tasks and profiles that do not exist.

    Raises:
        SpecError: names the key, what is known, and the nearest name.
    """
    named = [("validation.tasks", task, list(GENERATORS)) for task in config.validation.tasks]
    for key, name, known in [*named, ("data.profile", config.data.profile, list(PROFILES))]:
        if name not in known:
            raise SpecError(
                f'{key} names "{name[:60]}", which does not exist', f"one of {', '.join(known)}",
                nearest_key(name, known),
            )  # fmt: skip
