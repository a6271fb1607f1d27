"""`scaler run job.yaml`: plan, check the signature, host the run and show it; or leave it to the daemon."""

from __future__ import annotations

import typer
from rich.console import Console

from scaler_wizard.cli.hosting import finish, follow_filed, host_run
from scaler_wizard.cli.options import JobArgument, JsonOption, WorkspaceOption, new_workspace
from scaler_wizard.cli.render import print_plan
from scaler_wizard.jobs.client import Client
from scaler_wizard.jobs.prepare import load_job, prepare
from scaler_wizard.safety.contract import check_job

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(job: JobArgument, workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """Run a signed job here. Gates are asked in this terminal or answered from another one.

    While a daemon runs, the job goes into its queue and is shown here.
    """
    spec = load_job(job)
    check_job(spec)
    space = new_workspace(workspace)
    console = Console()
    prepared = prepare(spec, space)
    print_plan(console, prepared)
    with Client(space) as client:
        filed = None
        if client.hosted and client.call("ping").get("daemon"):
            values = spec.model_dump(mode="json", by_alias=True)
            filed = str(client.call("create", job=values, plan=prepared.plan.as_dict())["run"])
    outcome = (
        host_run(space, console, job=spec, plan=prepared.plan)
        if filed is None
        else follow_filed(space, console, filed)
    )
    finish(space, console, outcome, json=json)
