"""`scaler runs list|show`: what this workspace has run."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Column, Table

from scaler_wizard.cli.options import JsonOption, RunArgument, WorkspaceOption, existing_workspace, print_json
from scaler_wizard.jobs.client import Client

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help="List runs, or show one."
)


@app.command("list")
def list_runs(workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """All runs, newest first."""
    with Client(existing_workspace(workspace)) as client:
        answer = client.call("runs")
    table = Table("run", "recipe", "status", "phase", Column("updated", no_wrap=True), "note", box=None)
    for row in answer["runs"]:
        table.add_row(
            row["run"],
            row["recipe"],
            row["status"],
            row["phase"] or "-",
            _when(row["updated"])[:-3],
            _note(row),
        )
    Console().print(
        table if answer["runs"] else "no runs yet; start one with `scaler run` or `scaler demo grow`"
    )
    if json:
        print_json(answer)


@app.command()
def show(run: RunArgument = "latest", workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """One run: state, phases with their numbers, open gates, what happened."""
    with Client(existing_workspace(workspace)) as client:
        row = client.call("show", run=client.call("find_run", name=run)["run"])
    console = Console()
    console.print(
        f"{row['run']}: {row['status']}" + (f" ({_note(row)})" if _note(row) else ""),
        highlight=False,
        markup=False,
    )
    if row["advice"] and row["status"] not in ("completed", "running"):
        console.print(f"what to do: {row['advice']}", highlight=False, markup=False)
    table = Table("phase", "status", "checkpoint", "context", "perplexity", "accuracy", "passed", box=None)
    for phase in row["phases"]:
        metrics = phase["metrics"]
        numbers = [_number(metrics.get(name)) for name in ("perplexity", "accuracy")]
        place = [
            phase["phase"],
            phase["status"],
            phase["checkpoint"] or "-",
            str(metrics.get("context", "-")),
        ]
        table.add_row(*place, *numbers, str(metrics.get("passed", "-")))
    console.print(table)
    for gate in row["open_gates"]:
        console.print(f"waiting at {gate['gate']}: {gate['sentence']}", highlight=False, markup=False)
    console.print("history:", highlight=False)
    for event in row["history"]:
        facts = ", ".join(f"{key} {value}" for key, value in event["data"].items() if value is not None)
        console.print(
            f"  {_when(event['time'])} {event['kind']}: {facts}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    console.print(f"folder: {row['path']}", highlight=False, markup=False, soft_wrap=True)
    if json:
        print_json(row)


def _note(row: dict[str, Any]) -> str:
    return str(row["error"] or "")[:100]


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
