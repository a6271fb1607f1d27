"""Options that commands on a bundle of experts share, and the engine on the bundle that they name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from scaler_wizard.cli.options import WorkspaceOption, existing_workspace
from scaler_wizard.errors import ModelNotFoundError, UsageError
from scaler_wizard.jobs.client import Client
from scaler_wizard.serving.client import ExpertsClient
from scaler_wizard.store.experts_bundle import Bundle, read_bundle
from scaler_wizard.store.version_files import WEIGHTS
from scaler_wizard.store.workspace import Workspace

NameOption = Annotated[str, typer.Option("--name", help="The bundle's name (deploy.name in the job).")]
VersionOption = Annotated[str | None, typer.Option("--version", help="v001...; the current one when empty.")]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="An exported bundle, instead of one of the workspace's.")
]
BaseOption = Annotated[str | None, typer.Option("--base", help="Another place of the same base model.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
QuestionsArgument = Annotated[Path, typer.Argument(help='Rows {"prompt", "image"?, "expert"?} (JSON Lines).')]


@dataclass(frozen=True)
class Asked:
    """Which bundle is asked, and where it runs; each field is an option of every command that asks."""

    name: NameOption = "experts"
    version: VersionOption = None
    folder: FolderOption = None
    base: BaseOption = None
    device: DeviceOption = "cpu"
    workspace: WorkspaceOption = None


def with_asked(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is an `Asked`, as Typer takes it: with its fields as options."""

    def run(**options: Any) -> None:
        asked = Asked(**{field.name: options.pop(field.name) for field in fields(Asked)})
        command(asked, **options)

    own = [*inspect.signature(command, eval_str=True).parameters.values()][1:]
    hints = get_type_hints(Asked, include_extras=True)
    assert all(field.default is not MISSING for field in fields(Asked))
    shared = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
                          annotation=hints[field.name])
        for field in fields(Asked)
    ]  # fmt: skip
    named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature([*named, *shared])  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def place_of(asked: Asked) -> tuple[Path, Path | None]:
    """The folder of the bundle that the options name, and what its workspace knows of pictures.

    Raises:
        UsageError: a device that is none. ModelNotFoundError: no such version.
    """
    check_device(asked.device)
    if asked.folder is not None:
        return asked.folder, None
    space = existing_workspace(asked.workspace)
    return find_bundle(space, asked.name, asked.version).folder, space.vision_features


@contextmanager
def serving(asked: Asked) -> Iterator[ExpertsClient]:
    """An engine on the bundle that the options name. Raises as `place_of` and `ExpertsClient`."""
    place, features = place_of(asked)
    with ExpertsClient(place, base=asked.base, device=asked.device, features=features) as client:
        yield client


def check_device(device: str) -> None:
    """Refuse what is no device, before anything is loaded.

    Raises:
        UsageError: another word.
    """
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise UsageError(f"--device {device}", "cpu, cuda or cuda:N", "leave it out: it is cpu")


def find_bundle(space: Workspace, name: str, version: str | None) -> Bundle:
    """The current version of a bundle, or the one named, every byte verified.

    Raises:
        ModelNotFoundError: there is none.
    """
    rows = [row for row in version_rows(space, name) if row["status"] != "deleted"]
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


def version_rows(space: Workspace, name: str | None) -> list[dict[str, Any]]:
    """Rows of every version of a bundle, newest first; of all lineages without a name."""
    with Client(space) as client:
        return list(client.call("versions", lineage=name)["versions"])
