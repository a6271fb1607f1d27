"""`scaler backup create|list|restore`, and `scaler retention`: the way back, and what may go."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from scaler_wizard.cli.options import JsonOption, WorkspaceOption, existing_workspace, print_json, user_name
from scaler_wizard.jobs.client import Client
from scaler_wizard.store import backup
from scaler_wizard.store.lock import HostLock

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Back up and put back the state of a workspace.",
)
retention_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


@app.command()
def create(
    why: Annotated[str, typer.Option(help="A few words, part of its name.")] = "by hand",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Back up database, config and lists; weights are never changed in place and need none."""
    space = existing_workspace(workspace)
    with Client(space) as client:
        name = client.call("backup_create", why=why)["backup"]
    typer.echo(f"backup {name} in {backup.backups_folder(space)}")
    if json:
        print_json({"backup": name})


@app.command("list")
def list_backups(workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """All backups, newest first; works with a damaged database too."""
    found = backup.list_backups(existing_workspace(workspace))
    # The name is what `restore` asks for, and holds when: it is never cut.
    table = Table(
        Column("backup", no_wrap=True, overflow="fold"), "why", "runs", "versions", "bytes", box=None
    )
    for item in found:
        numbers = [str(item.counts.get(name, "-")) for name in ("runs", "versions")]
        table.add_row(item.name, Text(item.why), *numbers, f"{item.n_bytes:,}")
    Console().print(table if found else "no backups yet; make one with `scaler backup create`")
    if json:
        print_json({"backups": [_row(item) for item in found]})


@app.command()
def restore(
    name: Annotated[str, typer.Argument(help='A backup\'s name, or "latest".')] = "latest",
    dry_run: DryRunOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Put database and config back as they were; what is there now is kept beside the backups."""
    space = existing_workspace(workspace)
    chosen = backup.verify(backup.find(space, name).path)
    made = datetime.fromtimestamp(chosen.created).strftime("%Y-%m-%d %H:%M:%S")
    rows = ", ".join(f"{chosen.counts.get(table, 0)} {table}" for table in ("runs", "versions"))
    typer.echo(f"{chosen.name}: made {made} ({chosen.why}), {rows}; its hashes are right")
    answer: dict[str, Any] = {"backup": chosen.name, "dry_run": dry_run}
    if dry_run:
        typer.echo("dry run: nothing was changed; runs and weights would stay as they are")
    else:
        if not yes:
            typer.confirm("Put the state back as it was then?", abort=True)
        with HostLock.acquire(space.lock):
            aside = backup.restore(space, chosen, time.time())
        answer["replaced"] = aside.name
        typer.echo(f"put back; the state before is in {aside}")
        typer.echo("next: `scaler health` says what is on disk and not in this database")
    if json:
        print_json(answer)


@retention_app.command()
def retention(
    dry_run: DryRunOption = False, workspace: WorkspaceOption = None, json: JsonOption = False
) -> None:
    """Delete old checkpoints that nothing needs, until the runs are under the size limit."""
    with Client(existing_workspace(workspace)) as client:
        answer = client.call("retention", dry_run=dry_run, by=user_name())
    typer.echo(answer["message"])
    for item in answer["deletions"]:
        verb = "deleted" if item["name"] in answer["deleted"] else "would go" if dry_run else "left, in use"
        typer.echo(f"  {verb}: {item['name']} ({item['bytes']:,} bytes): {item['reason']}")
    if dry_run:
        typer.echo(f"dry run: nothing was deleted; {len(answer['kept'])} things are protected or young")
    if json:
        print_json({**answer, "dry_run": dry_run})


def _row(item: backup.Backup) -> dict[str, Any]:
    return {**asdict(item), "path": str(item.path)}
