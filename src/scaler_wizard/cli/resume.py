"""`scaler resume RUN`: continue where the newest verified checkpoint stands."""

from __future__ import annotations

import typer
from rich.console import Console

from scaler_wizard.cli.hosting import finish, host_run
from scaler_wizard.cli.options import JsonOption, RunArgument, WorkspaceOption, existing_workspace

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def resume(run: RunArgument = "latest", workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """Continue a run that paused, failed, was stopped or was killed; a living worker is taken over."""
    space = existing_workspace(workspace)
    console = Console()
    outcome = host_run(space, console, run=run)
    finish(space, console, outcome, json=json)
