"""`scaler config get|set|diff`: the workspace's config.yaml."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from typing import Annotated, Any

import typer

from scaler_wizard.cli.options import JsonOption, WorkspaceOption, existing_workspace, print_json, user_name
from scaler_wizard.jobs.client import Client
from scaler_wizard.specs.continual import LOCKED, ContinualConfig
from scaler_wizard.store import config

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Read and change config.yaml.",
)
KeyArgument = Annotated[str, typer.Argument(help="A key, such as training.learning_rate.")]


@app.command("get")
def get_config(
    key: Annotated[str | None, typer.Argument(help="A key or section; everything when left out.")] = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """What is set, defaults included; keys locked since the first run are marked."""
    loaded = config.load(existing_workspace(workspace))
    whole = config.flatten(loaded.model_dump(mode="json", by_alias=True))
    if key is not None:
        value = config.value_at(loaded, key)
        whole = config.flatten(value, f"{key}.") if isinstance(value, dict) else {key: value}
    shown = {name: _shown(name, value) for name, value in whole.items() if not name.startswith("contract.")}
    for name, value in shown.items():
        mark = "  (locked after the first run)" if name in LOCKED else ""
        typer.echo(f"{name}: {_text(value)}{mark}")
    if json:
        print_json({"config": shown})


# A value may be negative: what looks like an unknown option is a value.
@app.command("set", context_settings={"ignore_unknown_options": True})
def set_config(
    key: KeyArgument,
    value: Annotated[str, typer.Argument(help="The value: a number, true, false, null, [a, b] or a text.")],
    unlock: Annotated[
        bool, typer.Option("--unlock", help="Change a key that is locked since the first run.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; kept in the flight log.")] = "",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Change one key; a backup is made first and your comments in the file stay."""
    with Client(existing_workspace(workspace)) as client:
        answer = client.call(
            "config_set",
            key=key,
            value=config.parse_value(value),
            unlock=unlock,
            reason=reason,
            by=user_name(),
        )
    typer.echo(answer["message"])
    if json:
        print_json(answer)


@app.command("diff")
def diff_config(workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """What differs from the defaults, and from what the last run was trained with."""
    space = existing_workspace(workspace)
    loaded = config.load(space)
    plain = ContinualConfig.parse({"model": {"base_model": loaded.model.base_model}}, "config")
    sections = [name for name in type(loaded).model_fields if name != "contract"]
    changed = config.differences(_dump(plain), _dump(loaded), sections)
    with Client(space) as client:
        last = client.call("config_last_run")
    typer.echo("different from the defaults:" if changed else "everything is at its default")
    for item in changed:
        typer.echo(
            f"  {item.key}: {_text(_shown(item.key, item.before))} -> {_text(_shown(item.key, item.after))}"
        )
    if last["run"] is not None:
        typer.echo(
            f"different from run {last['run']}:" if last["differences"] else f"the same as run {last['run']}"
        )
        for row in last["differences"]:
            typer.echo(f"  {row['key']}: {_text(row['before'])} -> {_text(row['after'])}")
    if json:
        rows = [{**asdict(item), "after": _shown(item.key, item.after)} for item in changed]
        print_json({"defaults": rows, "last_run": last})


def _dump(loaded: ContinualConfig) -> dict[str, Any]:
    return loaded.model_dump(mode="json", by_alias=True)


def _shown(key: str, value: Any) -> Any:
    """Addresses of notifications hold passwords."""
    if key == config.SECRET and value:
        return [f"{str(url).partition('://')[0]}://..." for url in value]
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json_module.dumps(value)
