"""`scaler daemon init|sign|start|stop|status`: the process that learns from the inbox."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from scaler_wizard.cli.options import (
    JsonOption,
    WorkspaceOption,
    existing_workspace,
    new_workspace,
    print_json,
    user_name,
)
from scaler_wizard.cli.sign import AcceptOption, ByOption, ScopeOption, WayBackOption, ceremony
from scaler_wizard.cli.status import LiveStatus, show_status
from scaler_wizard.errors import ContractNotAcceptedError, RunError, SpecError
from scaler_wizard.jobs.client import Client
from scaler_wizard.jobs.daemon import run_daemon
from scaler_wizard.jobs.detach import start_detached, wait_until_free
from scaler_wizard.jobs.standing import load_config, signature_problem
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store.config import config_path, save

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True,
    help="A model that keeps learning: drop files into the inbox, go away.",
)  # fmt: skip
LIMITS = (
    "  every file keeps to: at most 90% of the free memory, the same questions before and after, a version",
    "  that got worse is held back, nothing is overwritten, your files in the inbox are only read",
)
STOP_PATIENCE_SEC = 15.0


@app.command()
def init(
    model: Annotated[
        str, typer.Option(help='A model directory, a hub name in the local cache, or "seedling".')
    ] = "seedling",
    name: Annotated[str, typer.Option(help="Name of the lineage, whose versions are v001...")] = "assistant",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Write a complete config.yaml, every key explained, into the workspace; never overwrites one."""
    facts = read_facts(resolve_model(model))
    space = new_workspace(workspace)
    path = config_path(space)
    if path.exists():
        raise SpecError(
            f"{path} exists already", "a workspace without a config",
            "edit that one, or move it away to begin anew",
        )  # fmt: skip
    base = str(Path(model).absolute()) if model != "seedling" and Path(model).is_dir() else model
    config = ContinualConfig.parse(
        {"model": {"base_model": base}, "lineage": {"model_name": name}}, config_path(space).name
    )
    save(space, config)
    typer.echo(f"workspace {space.root}")
    typer.echo(
        f"wrote {path} for {facts.name} ({facts.parameters:,} parameters, context {facts.base_context:,})"
    )
    typer.echo(f"inbox {space.inbox}")
    typer.echo("next: look at the file, then `scaler daemon sign`, then `scaler daemon start`")
    if json:
        print_json({"config": str(path), "inbox": str(space.inbox), "workspace": str(space.root)})


@app.command()
def sign(
    by: ByOption = None,
    scope: ScopeOption = None,
    rollback_plan: WayBackOption = None,
    accept: AcceptOption = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Sign once for every file that is dropped: the learning sections of config.yaml."""
    space = existing_workspace(workspace)
    try:
        contract = ceremony(load_config(space), config_path(space), LIMITS, by, scope, rollback_plan, accept)
    except ContractNotAcceptedError as error:
        todo = error.todo.replace("scaler sign job.yaml", "scaler daemon sign")
        raise ContractNotAcceptedError(error.field, error.found, error.expected, todo) from None
    typer.echo(f"Signed by {contract.authorized_by}. Next: scaler daemon start")
    if json:
        print_json({"config": str(config_path(space)), "contract": contract.model_dump(mode="json")})


@app.command()
def start(
    detach: Annotated[bool, typer.Option("--detach", help="Leave it running in the background.")] = False,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Start the daemon: here, with a live view, until Ctrl-C; or in the background with --detach."""
    space = existing_workspace(workspace)
    problem = signature_problem(load_config(space))
    if problem is not None:
        typer.echo(f"warning: {problem}; files wait in the inbox meanwhile", err=True)
    if detach:
        pid = start_detached(space)
        typer.echo(f"the daemon runs as process {pid}; drop files into {space.inbox}")
        typer.echo("see it with `scaler status`, end it with `scaler daemon stop`")
        if json:
            print_json({"pid": pid, "inbox": str(space.inbox), "log": str(space.logs / "daemon.log")})
        return
    console = Console()
    console.print(
        f"the daemon runs as process {os.getpid()}; drop files into {space.inbox}; Ctrl-C ends it",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    with LiveStatus(console) as live:
        left = run_daemon(space, live.show, live.say)
    for run in left:
        console.print(f"{run} goes on alone; the next daemon takes it over", highlight=False, markup=False)
    console.print("the daemon has ended", highlight=False)
    if json:
        print_json({"left_running": left})


@app.command()
def stop(
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for workers: the next daemon takes them over.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the event log.")] = "",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """End the daemon: the run at work finishes its step, is saved, and goes on at the next start."""
    space = existing_workspace(workspace)
    with Client(space) as client:
        answer = client.call("ping") if client.hosted else {}
        if not answer.get("daemon"):
            raise RunError(
                f"no daemon runs for {space.root}", "a running daemon", "start one with `scaler daemon start`"
            )
        pid = answer["pid"]
        bound = client.call("daemon_stop", now=now, by=user_name(), reason=reason)["seconds"]
    if not wait_until_free(space, bound + STOP_PATIENCE_SEC):
        raise RunError(
            f"the daemon (process {pid}) has not ended yet",
            f"its end within {bound + STOP_PATIENCE_SEC:.0f} s",
            f"see {space.logs / 'daemon.log'}, or end process {pid}",
        )  # fmt: skip
    typer.echo(
        f"the daemon (process {answer['pid']}) has ended; what it was learning goes on at the next start"
    )
    if json:
        print_json({"pid": answer["pid"], "stopped": True})


@app.command()
def status(workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """Whether a daemon runs, what it does, what waits; the same as `scaler status`."""
    show_status(existing_workspace(workspace), json)
