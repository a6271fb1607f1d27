"""`scaler rollback RUN --to-phase N`: back to a committed phase, and `--undo` forward again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaler_wizard.cli.decide import ReasonOption, decide
from scaler_wizard.cli.options import (
    JsonOption,
    RunArgument,
    WorkspaceOption,
    existing_workspace,
    print_json,
    user_name,
)
from scaler_wizard.errors import SpecError
from scaler_wizard.jobs.client import Client

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def rollback(
    run: RunArgument = "latest",
    to_phase: Annotated[
        str | None,
        typer.Option(
            "--to-phase", "--target-phase", help="Phase to stand at: 2 or P2 (default: the one before)."
        ),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder, instead of its name.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the last rollback back.")] = False,
    reason: ReasonOption = "",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Make an earlier phase, its hashes checked, the current state. Nothing is deleted: --undo goes back."""
    if run_dir is not None:
        run, workspace = run_dir.absolute().name, run_dir.absolute().parent.parent
    target = None if to_phase is None else _phase(to_phase)
    if not undo:
        decide(workspace, run, "rollback", reason, json, target)
        return
    with Client(existing_workspace(workspace)) as client:
        answer = client.call("undo_rollback", run=client.call("find_run", name=run)["run"], by=user_name())
    typer.echo(answer["message"])
    if json:
        print_json(answer)


def _phase(text: str) -> str:
    name = text.upper() if text[:1] in "pP" else f"P{text}"
    if not name[1:].replace(".", "", 1).isdigit():
        raise SpecError(
            f'"{text}" is no phase', "a number like 2, or a name like P2", "see `scaler runs show`"
        )
    return name
