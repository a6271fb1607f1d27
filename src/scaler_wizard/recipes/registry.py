"""Every recipe, by the name a job gives in `recipe`."""

from __future__ import annotations

from collections.abc import Callable

from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.grow import GrowRecipe
from scaler_wizard.runs.phase import Recipe
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.store.rundir import RunDir

RECIPES: dict[str, Callable[[GrowJob, Plan, RunDir], Recipe]] = {"grow": GrowRecipe}
