"""`scaler experts list|rollback|export|import`: versions of a bundle, and bundles from elsewhere."""

from __future__ import annotations

import shlex
import shutil
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
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
from scaler_wizard.specs.yaml_io import dump_yaml
from scaler_wizard.store.durable import sha256_file
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
    console = Console()
    for row in rows:
        made = datetime.fromtimestamp(row["created"]).strftime("%Y-%m-%d %H:%M")
        head = f"{row['lineage']} {row['name']}  {row['status']:<10}  {made}  {row['description']}"
        console.print(Text(head))
        for why in row["metrics"].get("reasons") or ():
            console.print(Padding(Text(why[:300], style="dim"), (0, 0, 0, 4)))
    if not rows:
        typer.echo("no experts yet; `scaler experts run` makes a bundle")
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
    """Check a bundle from elsewhere, byte for byte, and copy it into the workspace.

    It can be asked there, and its adapters put into a job of yours; what is in service stays as it is.
    """
    found = read_bundle(path.parent if path.name == LORAS else path)
    bundle = _imported(new_workspace(workspace), found)
    adapters = {lora.label: str(bundle.folder_of(lora)) for lora in bundle.experts}
    lines = ["experts:"]
    for lora in bundle.experts:
        place = dump_yaml({"adapter": adapters[lora.label]}).strip()
        lines += [f"  - label: {lora.label}", f"    {place}", f"    mode: {lora.mode}", "    data: ..."]
    question = shlex.join(["scaler", "experts", "ask", "--folder", str(bundle.folder), "..."])
    typer.echo(f"{len(adapters)} adapters checked and copied. To ask them: {question}")
    typer.echo(f"For a job on {bundle.base}, with data of yours for each:")
    typer.echo("\n".join(lines))
    if json:
        print_json({"folder": str(bundle.folder), "adapters": adapters, "base": bundle.base})


def _imported(space: Workspace, found: Bundle) -> Bundle:
    """The workspace's own copy, named by content and verified where it lies; the same one when done again."""
    digest = sha256_file(found.folder / LORAS)  # which holds the hash of everything else
    target = space.root / "imported" / safe_name(f"{found.labels[0][:32]}-{digest[:12]}", "bundle")
    if not target.exists():
        staging = target.with_name(f".{target.name}.part")
        shutil.rmtree(staging, ignore_errors=True)
        staging.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copytree(found.folder, staging)
        read_bundle(staging)
        staging.rename(target)
    return read_bundle(target)


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
