"""Data profiles: pluggable shapes of conversations, one file each, in one registry. Torch-free."""

from __future__ import annotations

from typing import Final

from scaler_wizard.data.profiles.emoji_think import EMOJI_THINK
from scaler_wizard.data.profiles.none import NONE
from scaler_wizard.data.profiles.profile import Profile
from scaler_wizard.data.profiles.regime3 import REGIME3
from scaler_wizard.errors import SpecError

PROFILES: Final[dict[str, Profile]] = {profile.name: profile for profile in (NONE, EMOJI_THINK, REGIME3)}


def find_profile(name: str) -> Profile:
    """The profile of a name.

    Raises:
        SpecError: there is none.
    """
    if name not in PROFILES:
        raise SpecError(f"no data profile {name!r}", f"one of {', '.join(PROFILES)}", "name one of these")
    return PROFILES[name]


__all__ = ["PROFILES", "Profile", "find_profile"]
