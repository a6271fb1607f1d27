"""`scaler queue list|set-priority` and `scaler clear`: what waits, and in which order."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scaler_wizard.cli.decide import ReasonOption
from scaler_wizard.cli.options import JsonOption, WorkspaceOption, existing_workspace, print_json, user_name
from scaler_wizard.jobs.client import Client

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="What waits, and in which order.",
)
clear_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
RunName = Annotated[str, typer.Argument(help="A run id, its beginning, or its file's name.")]


@app.command("list")
def list_queue(workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """What is at work, what waits and why, what is paused, what ended lately."""
    with Client(existing_workspace(workspace)) as client:
        answer = client.call("queue")
    console = Console()
    if answer["held"]:
        console.print(Text(f"nothing is started: {answer['held']}", style="yellow"))
    table = Table("", "run", "state", "priority", "since", "note", box=None)
    for place, row in enumerate(answer["active"] + answer["queued"] + answer["paused"], start=1):
        table.add_row(str(place), *_cells(row, row.get("why")))
    for row in answer["recently_completed"] + answer["recently_failed"]:
        table.add_row("", *_cells(row, None))
    console.print(table if table.row_count else "nothing waits; drop a file into the inbox")
    if json:
        print_json(answer)


@app.command("set-priority")
def set_priority(
    run: RunName,
    priority: Annotated[str, typer.Argument(help="high, normal or low.")],
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Let a waiting run start earlier or later; among equals the older one starts first."""
    with Client(existing_workspace(workspace)) as client:
        found = client.call("find_run", name=run)["run"]
        answer = client.call("set_priority", run=found, priority=priority)
    typer.echo(answer["message"])
    if json:
        print_json(answer)


@clear_app.command()
def clear(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    reason: ReasonOption = "",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Take everything that waits out of the queue. Nothing is deleted; your files stay in the inbox."""
    with Client(existing_workspace(workspace)) as client:
        waiting = client.call("queue")["queued"]
        if waiting and not yes:
            for row in waiting:
                typer.echo(f"  {row['run']}")
            typer.confirm(f"Take these {len(waiting)} out of the queue?", abort=True)
        answer = client.call("clear", reason=reason, by=user_name())
    typer.echo(answer["message"])
    if json:
        print_json(answer)


def _cells(row: dict[str, Any], why: str | None) -> list[Text]:
    since = datetime.fromtimestamp(row["updated"]).strftime("%m-%d %H:%M:%S")
    note = why or row["error"] or ""
    return [Text(str(text)) for text in (row["run"], row["status"], row["priority"], since, note[:100])]
