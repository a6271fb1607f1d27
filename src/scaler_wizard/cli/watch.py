"""`scaler watch RUN`: follow a run that somebody else hosts."""

from __future__ import annotations

import typer
from rich.console import Console

from scaler_wizard.cli.follow import Follower
from scaler_wizard.cli.options import JsonOption, RunArgument, WorkspaceOption, existing_workspace, print_json
from scaler_wizard.jobs.client import Client
from scaler_wizard.store.lock import is_locked

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def watch(run: RunArgument = "latest", workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """Show a run from its beginning and follow it; gates can be answered here. Closing harms nothing."""
    space = existing_workspace(workspace)
    console = Console()
    with Client(space) as client:
        run_dir = space.run_dir(client.call("find_run", name=run)["run"])
        follower = Follower(run_dir, console, client if client.hosted else None)
        try:
            follower.follow(lambda: not is_locked(run_dir.lock))
        except KeyboardInterrupt:
            console.print("\nstopped watching; the run goes on", highlight=False)
        if json:
            print_json(client.call("show", run=run_dir.id))
