"""Every kind of job, by the recipe it names."""

from __future__ import annotations

from typing import Any

from scaler_wizard.errors import SpecError
from scaler_wizard.specs.bootstrap import BootstrapJob
from scaler_wizard.specs.continual import ConsolidateJob, ContinualJob
from scaler_wizard.specs.experts import ExpertsJob
from scaler_wizard.specs.grow import GrowJob

LineageJob = ContinualJob | ConsolidateJob
"""Jobs that start from a version of a lineage and leave the next one."""
LINEAGE_RECIPES = ("continual", "consolidate")
"""Their recipes: what one standing contract covers."""
FileJob = GrowJob | ExpertsJob | BootstrapJob
"""Jobs that a person writes as a file, signs and runs."""
Job = FileJob | LineageJob

JOBS: dict[str, type[Job]] = {
    "grow": GrowJob,
    "experts": ExpertsJob,
    "bootstrap": BootstrapJob,
    "continual": ContinualJob,
    "consolidate": ConsolidateJob,
}


def parse_job(value: object) -> Job:
    """Validate a mapping as the job of the recipe it names ("grow" where it names none).

    Raises:
        SpecError: no mapping, an unknown recipe, or anything the recipe's spec refuses.
    """
    recipe: Any = value.get("recipe", "grow") if isinstance(value, dict) else "grow"
    if not isinstance(recipe, str) or recipe not in JOBS:
        raise SpecError(f'recipe is "{recipe}"', f"one of {', '.join(JOBS)}", "correct the key recipe")
    return JOBS[recipe].parse(value)
