"""`scaler report RUN`: write the page of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaler_wizard.cli.options import JsonOption, RunArgument, WorkspaceOption, existing_workspace, print_json
from scaler_wizard.jobs.client import Client
from scaler_wizard.report.page import write_report

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def report(
    run: RunArgument = "latest",
    out: Annotated[
        Path | None, typer.Option(help="Where to (default: report.html in the run's folder).")
    ] = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page from a run's folder, finished or not."""
    space = existing_workspace(workspace)
    with Client(space) as client:
        found = client.call("find_run", name=run)["run"]
    path = write_report(space.run_dir(found).path, out)
    typer.echo(f"report: {path}")
    if json:
        print_json({"report": str(path)})
