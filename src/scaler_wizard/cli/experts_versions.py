"""`scaler experts list|rollback|export|import`: versions of a bundle, and bundles from elsewhere."""

from __future__ import annotations

import shlex
import shutil
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scaler_wizard.cli.options import (
    JsonOption,
    WorkspaceOption,
    existing_workspace,
    new_workspace,
    print_json,
    user_name,
)
from scaler_wizard.errors import DataError, ModelNotFoundError
from scaler_wizard.jobs.client import Client
from scaler_wizard.serving.vllm import vllm_command
from scaler_wizard.store.experts_bundle import LORAS, Bundle, read_bundle
from scaler_wizard.store.names import safe_name
from scaler_wizard.store.version_files import WEIGHTS
from scaler_wizard.store.workspace import Workspace

NameOption = Annotated[str, typer.Option("--name", help="The bundle's name (deploy.name in the job).")]
VersionOption = Annotated[str | None, typer.Option("--version", help="v001...; the current one when empty.")]


def add_commands(app: typer.Typer) -> None:
    """Put these commands into `scaler experts`."""
    app.command("list")(list_versions)
    app.command()(rollback)
    app.command()(export)
    app.command("import")(import_loras)


def list_versions(workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """Versions of every bundle, newest first, and which one is in service."""
    rows = [row for row in _rows(existing_workspace(workspace), None) if _is_bundle(row)]
    table = Table("bundle", "version", "status", "made", "description", "why", box=None)
    for row in rows:
        made = datetime.fromtimestamp(row["created"]).strftime("%Y-%m-%d %H:%M")
        why = "; ".join(row["metrics"].get("reasons") or ())
        table.add_row(
            row["lineage"], row["name"], row["status"], made, Text(row["description"]), Text(why[:200])
        )
    Console().print(table if rows else "no experts yet; `scaler experts run` makes a bundle")
    if json:
        print_json({"versions": rows})


def rollback(
    name: NameOption = "experts", version: VersionOption = None, workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Put the version before the current one into service again (or the one named), its bytes verified."""
    space = existing_workspace(workspace)
    target = version or _before(_rows(space, name), name)
    with Client(space) as client:
        answer = client.call(
            "version_restore", lineage=name, version=target, by=user_name(), reason="experts rollback"
        )
    typer.echo(answer["message"])
    if json:
        print_json(answer)


def export(
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
    name: NameOption = "experts",
    version: VersionOption = None,
    vllm: Annotated[
        bool, typer.Option("--vllm", help="Write the lora twins by content, and the command.")
    ] = False,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Copy a bundle with its loras.json out of the workspace; for vLLM, the plain twins under their names."""
    bundle = find_bundle(existing_workspace(workspace), name, version)
    if to.exists():
        raise DataError(f"{to} is there already", "a new folder", "name another one")
    if vllm:
        command = vllm_command(bundle, to)
        typer.echo(shlex.join(command))
        answer: dict[str, Any] = {"command": command}
    else:
        shutil.copytree(bundle.folder, to)
        read_bundle(to)
        typer.echo(f"{len(bundle.experts)} experts and {LORAS} in {to}")
        answer = {"folder": str(to), "labels": list(bundle.labels)}
    if json:
        print_json(answer)


def import_loras(
    path: Annotated[Path, typer.Argument(help="A loras.json, or its folder.")],
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Check adapters from elsewhere, byte for byte, and copy them into the workspace for a job of yours."""
    bundle = read_bundle(path.parent if path.name == LORAS else path)
    space = new_workspace(workspace)
    lines, copied = ["experts:"], {}
    for lora in bundle.experts:
        folder = space.root / "adapters" / safe_name(f"{lora.label[:48]}-{lora.sha256[:12]}", "adapter")
        if not folder.exists():
            staging = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(staging, ignore_errors=True)
            staging.parent.mkdir(mode=0o700, exist_ok=True)
            shutil.copytree(bundle.folder_of(lora), staging)
            staging.rename(folder)
        copied[lora.label] = str(folder)
        lines += [f"  - label: {lora.label}", f"    adapter: {folder}", f"    mode: {lora.mode}"]
    typer.echo(f"{len(copied)} adapters checked and copied; for a job on {bundle.base}:")
    typer.echo("\n".join(lines))
    if json:
        print_json({"adapters": copied, "base": bundle.base})


def find_bundle(space: Workspace, name: str, version: str | None) -> Bundle:
    """The current version of a bundle, or the one named, every byte verified.

    Raises:
        ModelNotFoundError: there is none.
    """
    rows = [row for row in _rows(space, name) if row["status"] != "deleted"]
    found = [row for row in rows if (row["name"] == version if version else row["status"] == "current")]
    if not found:
        held = [row["name"] for row in rows]
        raise ModelNotFoundError(
            f'no {version or "current"} version of "{name}"',
            "a bundle that was promoted",
            f"there are {', '.join(held)}: name one with --version"
            if held
            else "`scaler experts run` makes one",
        )
    return read_bundle(Path(found[0]["folder"]) / WEIGHTS["experts"])


def _rows(space: Workspace, name: str | None) -> list[dict[str, Any]]:
    with Client(space) as client:
        return list(client.call("versions", lineage=name)["versions"])


def _is_bundle(row: dict[str, Any]) -> bool:
    return (Path(row["folder"]) / WEIGHTS["experts"] / LORAS).is_file()


def _before(rows: list[dict[str, Any]], name: str) -> str:
    """The newest version older than the current one that was in service."""
    current = next((row["number"] for row in rows if row["status"] == "current"), None)
    older = [
        row for row in rows if row["status"] == "superseded" and (current is None or row["number"] < current)
    ]
    if not older:
        raise ModelNotFoundError(
            f'no version of "{name}" was in service before', "an earlier promoted version",
            "`scaler experts list` shows what there is; --version names one",
        )  # fmt: skip
    return str(max(older, key=lambda row: row["number"])["name"])
