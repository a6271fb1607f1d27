"""`scaler resume RUN`: continue where the newest verified checkpoint stands."""

from __future__ import annotations

import uuid

import typer
from rich.console import Console

from scaler_wizard.cli.decide import OptionalRun, ReasonOption
from scaler_wizard.cli.hosting import finish, follow_filed, host_run, next_seq
from scaler_wizard.cli.options import JsonOption, WorkspaceOption, existing_workspace, print_json, user_name
from scaler_wizard.jobs.client import Client

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def resume(
    run: OptionalRun = None,
    reason: ReasonOption = "",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Continue a run that paused, failed, was stopped, skipped or killed; a living worker is taken over.

    While a daemon runs it does the work: with a name it is put into its queue and shown here, without one
    the paused queue goes on.
    """
    space = existing_workspace(workspace)
    console = Console()
    with Client(space) as client:
        daemon = client.hosted and bool(client.call("ping").get("daemon"))
        found = client.call("find_run", name=run or "latest")["run"] if run or not daemon else None
        if daemon and found is None:
            answer = client.call("resume_queue", by=user_name(), reason=reason)
            typer.echo(answer["message"])
            if json:
                print_json(answer)
            return
        from_seq = next_seq(space.run_dir(found)) if found else 0
        if daemon:
            answer = client.call(
                "command", run=found, action="resume", by=user_name(), reason=reason,
                decision_id=uuid.uuid4().hex,
            )  # fmt: skip
            console.print(answer["message"], highlight=False, markup=False)
    assert found is not None
    outcome = follow_filed(space, console, found, from_seq) if daemon else host_run(space, console, run=found)
    finish(space, console, outcome, json=json)
