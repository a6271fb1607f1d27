"""Scaling templates: six that ship, and a person's own from the workspace. Pure but for reading those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from scaler_wizard.errors import SpecError
from scaler_wizard.planning.hardware import GIB, Hardware
from scaler_wizard.specs.base import Spec
from scaler_wizard.specs.sections import NAME_PATTERN
from scaler_wizard.specs.yaml_io import read_yaml

MIN_RANK, MIN_MULTIPLIER = 4, 2
MAX_OWN_TEMPLATES = 200


class Template(Spec):
    """A named starting point: what a job leaves open is taken from here."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """What it is called: in the workspace, the file's name without `.yaml`."""
    rank: Annotated[int, Field(ge=1, le=1024)]
    """Adapter rank."""
    alpha: Annotated[float, Field(gt=0)]
    """Adapter scaling numerator; the update is multiplied by alpha / rank."""
    context_multiplier: Annotated[float, Field(ge=1, le=64)]
    """Target context as a multiple of the base context."""
    distillation: bool = False
    """Whether the last phase should learn from a teacher, when the job names one."""
    min_vram_gb: Annotated[float, Field(ge=0)]
    """Device memory in GiB below which rank and multiplier are halved."""
    telemetry: Literal["standard", "detailed", "high_resolution", "exploratory"] = "standard"
    """How much is recorded."""
    description: str = ""
    """What it is good for, one sentence."""


def _shipped(
    name: str,
    rank: int,
    alpha: float,
    multiplier: float,
    distillation: bool,
    vram: float,
    telemetry: Literal["standard", "detailed", "high_resolution", "exploratory"],
    description: str,
) -> Template:
    return Template(
        name=name, rank=rank, alpha=alpha, context_multiplier=multiplier, distillation=distillation,
        min_vram_gb=vram, telemetry=telemetry, description=description,
    )  # fmt: skip


SHIPPED: Mapping[str, Template] = MappingProxyType({
    template.name: template
    for template in (
        _shipped("balanced_scaling", 16, 48, 4, True, 16, "standard", "A bit of everything."),
        _shipped("max_context", 12, 32, 16, False, 20, "high_resolution", "The longest context."),
        _shipped("max_parameters", 32, 96, 2, True, 18, "standard", "The most adapter capacity."),
        _shipped("budget_context", 8, 24, 2, False, 8, "standard", "Longer documents on a small machine."),
        _shipped("reasoning_boost", 28, 84, 3, True, 16, "detailed", "Step-by-step tasks."),
        _shipped("creative_fusion", 20, 60, 6, True, 24, "exploratory", "Writing and style."),
    )
})  # fmt: skip


@dataclass(frozen=True)
class FittedTemplate:
    """A template as this machine can use it, and why it differs."""

    template: Template
    reasons: tuple[str, ...]


def load_templates(workspace_root: Path | None) -> Mapping[str, Template]:
    """The shipped templates and those in `templates/*.yaml` of the workspace, by name.

    Raises:
        SpecError: a file that is not a template, a name that differs from its file's, a shipped name,
            or more than `MAX_OWN_TEMPLATES` files.
    """
    templates = dict(SHIPPED)
    folder = workspace_root / "templates" if workspace_root else None
    files = sorted(folder.glob("*.yaml")) if folder and folder.is_dir() else []
    if len(files) > MAX_OWN_TEMPLATES:
        raise SpecError(f"{len(files)} templates in {folder}", f"at most {MAX_OWN_TEMPLATES}", "remove some")
    for file in files:
        template = Template.parse({"name": file.stem, **read_yaml(file)}, f"template {file.name}")
        if template.name != file.stem:
            raise SpecError(
                f'{file} names itself "{template.name}"', f'name "{file.stem}"', "rename one of them"
            )
        if template.name in SHIPPED:
            raise SpecError(
                f'{file} has the name of a template that ships, "{template.name}"',
                "a name of its own",
                "rename it",
            )
        templates[template.name] = template
    return MappingProxyType(templates)


def fit_template(template: Template, hardware: Hardware) -> FittedTemplate:
    """The template for this machine: below its memory minimum, rank and multiplier halve once.

    The floors are rank 4 and multiplier 2 (a template that starts below a floor stays as it is). Alpha
    follows the rank, so that the size of the update stays. Without a GPU the machine's RAM stands in for
    VRAM, because that is the memory training will use.
    """
    memory_gb = hardware.memory_total / GIB
    reasons = []
    if hardware.gpu is None:
        reasons.append(
            f"no GPU: {memory_gb:.0f} GiB of RAM are compared with the template's "
            f"{template.min_vram_gb:g} GiB of VRAM"
        )
    if memory_gb >= template.min_vram_gb:
        return FittedTemplate(template, tuple(reasons))
    rank = min(template.rank, max(MIN_RANK, template.rank // 2))
    multiplier = min(template.context_multiplier, max(MIN_MULTIPLIER, template.context_multiplier / 2))
    fitted = template.model_copy(
        update={
            "rank": rank,
            "alpha": template.alpha * rank / template.rank,
            "context_multiplier": multiplier,
        }
    )
    reasons.append(
        f"{memory_gb:.0f} GiB are below the {template.min_vram_gb:g} GiB of {template.name}: rank "
        f"{template.rank} -> {rank}, context multiplier {template.context_multiplier:g} -> {multiplier:g}"
    )
    return FittedTemplate(fitted, tuple(reasons))
