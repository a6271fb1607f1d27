"""`scaler init`: a workspace, and a job file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scaler_wizard.cli.options import JsonOption, WorkspaceOption, new_workspace, print_json
from scaler_wizard.errors import DataFileMissingError, SpecError
from scaler_wizard.jobs.prepare import parse_job
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.specs.yaml_io import dump_yaml

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
HEAD = """\
# A Scaler Wizard job. Every key is explained in docs/job.md; what is left out has a default.
# Next: scaler plan {name}   then   scaler sign {name}   then   scaler run {name}
"""


@app.command()
def init(
    model: Annotated[
        str, typer.Option(help='A model directory, a hub name in the local cache, or "seedling".')
    ] = "seedling",
    data: Annotated[
        Path | None, typer.Option(help="JSONL, JSON, CSV, Parquet or text file to learn from.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Context length to reach, in tokens.")] = None,
    template: Annotated[str | None, typer.Option(help="A template's name, see `scaler recommend`.")] = None,
    out: Annotated[Path, typer.Option(help="Job file to write.")] = Path("job.yaml"),
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Write a checked job file with the settings one usually changes; never overwrites a file."""
    if out.exists():
        raise SpecError(f"{out} exists already", "a new file name", "choose another with --out, or remove it")
    if not out.absolute().parent.is_dir():
        raise SpecError(f"there is no folder {out.absolute().parent}", "an existing folder", "make it first")
    if data is not None and not data.is_file():
        raise DataFileMissingError(f"there is no data file {data}", "an existing file", "check --data")
    space = new_workspace(workspace)
    path = resolve_model(model)
    facts = read_facts(path)
    value: dict[str, Any] = {
        "recipe": "grow",
        "name": "grow",
        "model": {
            "base_model": model if model == "seedling" or not Path(model).is_dir() else str(path.absolute())
        },
        "scaling": {"strategy": "lora"},
        "dataset": {"identifier": str(data.absolute())}
        if data
        else {"source": "synthetic", "identifier": "seedling"},
    }
    if template:
        value["scaling"]["template"] = template
    if context or not template:
        value["scaling"]["target_context"] = context or 2 * facts.base_context
    value["training"] = {"max_steps": 200, "context_steps": 200, "seed": 0}
    value["safety"] = {"gates": {"response_window_sec": 120, "ask": "human"}}
    parse_job(value, out.absolute().parent)
    out.write_text(HEAD.format(name=out) + dump_yaml(value), encoding="utf-8")
    typer.echo(f"workspace {space.root}")
    typer.echo(
        f"wrote {out} for {facts.name} ({facts.parameters:,} parameters, context {facts.base_context:,})"
    )
    if data is None:
        typer.echo("no --data given: the job learns generated tasks, which suit the embedded model only")
    typer.echo(f"next: scaler plan {out}")
    if json:
        print_json({"job": str(out), "workspace": str(space.root)})
