"""Options that several commands share, and the few lines around every command's work."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from scaler_wizard.store.workspace import Workspace, default_root

WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace", "-w", help="Your workspace folder (default: $SCALER_WORKSPACE or ~/scaler-workspace)."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")]
RunArgument = Annotated[
    str, typer.Argument(help='A run id, its unique beginning, its file\'s name, or "latest".')
]
JobArgument = Annotated[Path, typer.Argument(help="A job file (YAML).")]


def existing_workspace(root: Path | None) -> Workspace:
    """The workspace to look into; folders that were lost in it are made again.

    Raises:
        WorkspaceError: there never was one: most often a typing error, so nothing is made there.
    """
    place = (root or default_root()).expanduser().absolute()
    if (place / "runs").is_dir() or (place / "state.db").is_file():
        return Workspace.create(root)
    return Workspace.open(root)


def new_workspace(root: Path | None) -> Workspace:
    """The workspace to begin in, made on first use."""
    return Workspace.create(root)


def print_json(value: dict[str, Any]) -> None:
    """One object on one line, the last one printed."""
    print(json.dumps(value, default=str), flush=True)


def user_name() -> str:
    """Who is at the keyboard, as far as the system knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown user"
