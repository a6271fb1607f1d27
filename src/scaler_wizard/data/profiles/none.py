"""Conversations as they are."""

from __future__ import annotations

from scaler_wizard.data.profiles.profile import Profile

NONE = Profile("none", "Conversations as they are.", "", None)
