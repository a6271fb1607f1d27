"""`scaler plan job.yaml`: what would happen, before anything does."""

from __future__ import annotations

import typer
from rich.console import Console

from scaler_wizard.cli.options import JobArgument, JsonOption, WorkspaceOption, new_workspace, print_json
from scaler_wizard.cli.render import print_plan
from scaler_wizard.jobs.prepare import load_job, prepare

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def plan(job: JobArgument, workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """Show phases, memory by line, time, disk and a sample row with its trained tokens. Loads no weights."""
    prepared = prepare(load_job(job), new_workspace(workspace))
    print_plan(Console(), prepared)
    if json:
        sample = prepared.sample
        shown = sample and {
            "runs": sample.runs, "end_of_turn_trained": sample.end_of_turn, "data": sample.words,
        }  # fmt: skip
        print_json({"plan": prepared.plan.as_dict(), "sample": shown})
