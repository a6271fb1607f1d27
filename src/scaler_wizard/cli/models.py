"""`scaler models list|diff|restore|delete|consolidate`: the versions of a model that goes on learning."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scaler_wizard.cli.options import JsonOption, WorkspaceOption, existing_workspace, print_json, user_name
from scaler_wizard.errors import ModelNotFoundError, RunError
from scaler_wizard.jobs.client import Client
from scaler_wizard.jobs.consolidation import queue_consolidation
from scaler_wizard.jobs.standing import load_config
from scaler_wizard.report.version_diff import VersionDifference, compare
from scaler_wizard.specs.continual import LEARNING_SECTIONS
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.version_files import version_name
from scaler_wizard.store.workspace import Workspace

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="List, compare, restore, merge and delete model versions.",
)
VersionArgument = Annotated[str, typer.Argument(help="A version's name, such as v003.")]
LineageOption = Annotated[
    str | None, typer.Option(help="The lineage's name, where the workspace has several.")
]
ReasonOption = Annotated[str, typer.Option(help="Why; kept in the flight log.")]


@app.command("list")
def list_models(
    lineage: LineageOption = None, workspace: WorkspaceOption = None, json: JsonOption = False
) -> None:
    """All versions, newest first, with what each has learned and which one is current."""
    with Client(existing_workspace(workspace)) as client:
        rows = client.call("versions", lineage=lineage)["versions"]
    table = Table("lineage", "version", "status", "made", "description", box=None)
    for row in rows:
        made = datetime.fromtimestamp(row["created"]).strftime("%Y-%m-%d %H:%M")
        table.add_row(row["lineage"], row["name"], row["status"], made, Text(row["description"][:100]))
    Console().print(table if rows else "no versions yet; the daemon makes one for each file it has learned")
    if json:
        print_json({"versions": rows})


@app.command()
def diff(
    first: VersionArgument,
    second: VersionArgument,
    lineage: LineageOption = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """What changed from one version to another: measurements in words, settings, weights by layer."""
    space = existing_workspace(workspace)
    with Client(space) as client:
        rows = client.call("versions", lineage=lineage)["versions"]
    old, new = _named(rows, first), _named(rows, second)
    found = compare(Path(old["folder"]), Path(new["folder"]), (_learning(space, old), _learning(space, new)))
    _show(found, old, new)
    if json:
        print_json(asdict(found))


@app.command()
def restore(
    version: VersionArgument,
    lineage: LineageOption = None,
    reason: ReasonOption = "",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Make an earlier version the current one again; its bytes are verified, nothing is deleted."""
    with Client(existing_workspace(workspace)) as client:
        answer = client.call(
            "version_restore", lineage=lineage, version=version, by=user_name(), reason=reason
        )
    typer.echo(answer["message"])
    if json:
        print_json(answer)


@app.command()
def delete(
    version: VersionArgument,
    lineage: LineageOption = None,
    reason: ReasonOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Delete the files of a version that nothing needs; asks first."""
    space = existing_workspace(workspace)
    with Client(space) as client:
        found = _named(client.call("versions", lineage=lineage)["versions"], version)
    if not yes:  # nobody is kept from the workspace while a person thinks
        typer.confirm(f"Delete the weights of {found['lineage']} {found['name']} for good?", abort=True)
    with Client(space) as client:
        answer = client.call(
            "version_delete", lineage=lineage, version=version, by=user_name(), reason=reason
        )
    typer.echo(answer["message"])
    if json:
        print_json(answer)


@app.command()
def consolidate(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Merge the current version's adapter into a new base version; the next file trains a fresh adapter."""
    space = existing_workspace(workspace)
    config = load_config(space)
    if not yes:
        typer.confirm(
            f"Merge {config.lineage.model_name} into a new base? It is a whole model on your disk; "
            "the versions before stay.",
            abort=True,
        )
    with Client(space) as client:
        queued = queue_consolidation(space, config, client.call)
        daemon = client.hosted and bool(client.call("ping").get("daemon"))
    then = "the daemon does it when it is free" if daemon else f"`scaler resume {queued.run}` does it now"
    typer.echo(f"{queued.run} merges {version_name(queued.version)}; {then}")
    if json:
        print_json(asdict(queued))


def _named(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    wanted = name if name.startswith("v") else f"v{name.zfill(3)}"
    matches = [row for row in rows if row["name"] == wanted and row["status"] != "deleted"]
    if len(matches) == 1:
        return matches[0]
    found = f"{len(matches)} versions are called {wanted}" if matches else f"there is no version {wanted}"
    raise ModelNotFoundError(
        found, "one version that is kept", "see `scaler models list`; name the --lineage"
    )


def _learning(space: Workspace, row: dict[str, Any]) -> dict[str, Any]:
    """Learning sections of the run that made a version; empty where that is not known any more."""
    try:
        job = RunDir(space.runs / str(row["run_id"])).job()
    except RunError:
        return {}
    return {name: job[name] for name in LEARNING_SECTIONS if name in job}


def _show(found: VersionDifference, old: dict[str, Any], new: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    console.print(f"{found.first}: {old['description']}")
    console.print(f"{found.second}: {new['description']}")
    console.print(f"measured: {found.words}", soft_wrap=True)
    for item in found.settings:
        console.print(f"setting {item.key}: {item.before} -> {item.after}")
    console.print(f"files that differ: {', '.join(found.files) or 'none'}", soft_wrap=True)
    if found.note:
        console.print(found.note)
    for layer in found.layers:
        share = f" ({layer.norm / layer.before:.1%} of what was there)" if layer.before else ""
        console.print(f"{layer.layer}: moved by {layer.norm:.4g}{share}")
