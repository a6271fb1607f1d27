"""`scaler recommend --vibe "..." --model PATH`: which template suits wish, model and machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from scaler_wizard.cli.options import JsonOption, WorkspaceOption, new_workspace, print_json
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.hardware import FAKES, probe_hardware
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.recommend import recommend as rank_templates
from scaler_wizard.planning.templates import load_templates

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def recommend(
    vibe: Annotated[
        str, typer.Option(help='In your own words: "budget laptop, long documents".')
    ] = "general",
    model: Annotated[
        str, typer.Option(help='A model directory, a hub name in the local cache, or "seedling".')
    ] = "seedling",
    machine: Annotated[str | None, typer.Option(help=f"Pretend another machine: {', '.join(FAKES)}.")] = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Rank the templates, with reasons."""
    space = new_workspace(workspace)
    if machine is not None and machine not in FAKES:
        raise typer.BadParameter(f"no machine {machine!r}; one of {', '.join(FAKES)}")
    hardware = FAKES[machine] if machine else probe_hardware(Path.cwd())
    facts = read_facts(resolve_model(model))
    ranked = rank_templates(vibe, hardware, facts, load_templates(space.root))
    console = Console()
    console.print(f"{facts.name} on {hardware.describe()}", highlight=False, markup=False, soft_wrap=True)
    for place, item in enumerate(ranked, start=1):
        template = item.template
        console.print(
            f"{place}. {template.name} ({item.score:.2f}): rank {template.rank}, "
            f"context x{template.context_multiplier:g}",
            highlight=False, markup=False, style="bold" if place == 1 else None,
        )  # fmt: skip
        for reason in item.reasons if place <= 3 else ():
            console.print(f"   - {reason}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"use it: scaler init --template {ranked[0].template.name} --model {model}",
        highlight=False,
        markup=False,
    )
    if json:
        print_json(
            {
                "model": facts.name,
                "ranked": [
                    {"template": item.template.name, "score": item.score, "reasons": list(item.reasons)}
                    for item in ranked
                ],
            }
        )
