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

from scaler_wizard.cli.experts_options import (
    BaseOption,
    DeviceOption,
    NameOption,
    VersionOption,
    check_device,
    find_bundle,
    version_rows,
)
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
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.serving.client import ExpertsClient
from scaler_wizard.serving.vllm import vllm_command
from scaler_wizard.specs.yaml_io import dump_yaml
from scaler_wizard.store.experts_bundle import LORAS, Bundle, read_bundle
from scaler_wizard.store.experts_import import bring
from scaler_wizard.store.version_files import WEIGHTS


def add_commands(app: typer.Typer) -> None:
    """Put these commands into `scaler experts`."""
    app.command("list")(list_versions)
    app.command()(rollback)
    app.command()(export)
    app.command("import")(import_loras)


def list_versions(workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """Versions of every bundle, newest first, and which one is in service."""
    rows = [row for row in version_rows(existing_workspace(workspace), None) if _is_bundle(row)]
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
    target = version or _before(version_rows(space, name), name)
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
    name: NameOption = "experts",
    base: BaseOption = None,
    device: DeviceOption = "cpu",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Bring a bundle from elsewhere into the workspace as a version; what is in service stays as it is.

    It is checked byte for byte, copied, and loaded once as it would be served. Where its base model
    lies elsewhere on this machine, --base says so.
    """
    check_device(device)
    source = path.parent if path.name == LORAS else path
    _check_base(base or read_bundle(source).base)  # before there is a workspace
    space, by = new_workspace(workspace), user_name()
    with bring(space, source, _place(base)) as bundle:
        with ExpertsClient(bundle.folder, device=device):
            pass  # another base, an adapter that does not fit or changes nothing: refused by the engine
        with Client(space) as client:
            row = client.call("experts_import", lineage=name, folder=str(bundle.folder), by=by)
    made = read_bundle(Path(row["folder"]) / WEIGHTS["experts"])
    version = f"{row['lineage']} {row['name']}"
    typer.echo(f"{version} ({row['status']}): {row['description']}")
    options = [] if name == "experts" else ["--name", name]
    for words, command in (("ask it", ["ask", "..."]), ("put it into service", ["rollback"])):
        line = shlex.join(["scaler", "experts", *command, *options, "--version", row["name"]])
        typer.echo(f"to {words}: {line}")
    adapters = {lora.label: str(made.folder_of(lora)) for lora in made.experts}
    typer.echo(f"to measure its experts in a job on {made.base}, with data of yours for each:")
    typer.echo(_experts_section(made, adapters))
    if json:
        print_json({"version": row, "folder": str(made.folder), "adapters": adapters, "base": made.base})


def _experts_section(bundle: Bundle, adapters: dict[str, str]) -> str:
    lines = ["experts:"]
    for lora in bundle.experts:
        place = dump_yaml({"adapter": adapters[lora.label]}).strip()
        lines += [f"  - label: {lora.label}", f"    {place}", f"    mode: {lora.mode}", "    data: ..."]
    return "\n".join(lines)


def _check_base(base: str) -> None:
    """Raises: ModelNotFoundError: it is not on this machine."""
    try:
        resolve_model(base)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"the base of these experts: {error.found}", error.expected,
            "say where it is with --base, or get it first",
        ) from None  # fmt: skip


def _place(base: str | None) -> str | None:
    """A directory by its whole path: the version is asked from other folders, too."""
    return str(Path(base).expanduser().absolute()) if base and Path(base).expanduser().is_dir() else base


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
