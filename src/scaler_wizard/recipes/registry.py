"""Every recipe, by the name a job gives in `recipe`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.bootstrap import BootstrapRecipe
from scaler_wizard.recipes.consolidate import ConsolidateRecipe
from scaler_wizard.recipes.continual import ContinualRecipe
from scaler_wizard.recipes.experts import ExpertsRecipe
from scaler_wizard.recipes.grow import GrowRecipe
from scaler_wizard.runs.phase import Recipe
from scaler_wizard.store.rundir import RunDir

# Each takes the job of its own recipe, as `specs.job.parse_job` made it.
RECIPES: dict[str, Callable[[Any, Plan, RunDir], Recipe]] = {
    "grow": GrowRecipe,
    "experts": ExpertsRecipe,
    "continual": ContinualRecipe,
    "consolidate": ConsolidateRecipe,
    "bootstrap": BootstrapRecipe,
}
