"""`scaler demo NAME`: the whole job on the embedded model, offline, answered by itself."""

from __future__ import annotations

import getpass
import uuid
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from scaler_wizard.cli.demo_continual import play
from scaler_wizard.cli.demo_experts import ask_experts
from scaler_wizard.cli.demo_screens import write_screens
from scaler_wizard.cli.demo_words import print_story
from scaler_wizard.cli.hosting import finish, host_run
from scaler_wizard.cli.options import JsonOption, WorkspaceOption, new_workspace, print_json
from scaler_wizard.cli.render import print_plan
from scaler_wizard.jobs.client import Client
from scaler_wizard.jobs.prepare import parse_job, prepare
from scaler_wizard.safety.contract import DEFAULT_ROLLBACK_PLAN, default_scope, sign
from scaler_wizard.specs.yaml_io import parse_yaml
from scaler_wizard.store.workspace import Workspace

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def demo() -> None:
    """Real runs on the embedded model: real weights, real measurements, nothing downloaded."""


@app.command()
def grow(
    workspace: WorkspaceOption = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    json: JsonOption = False,
) -> None:
    """Grow the embedded model from 128 to 512 tokens of context and teach it instructions."""
    console = Console()
    space = new_workspace(workspace or Path("demo-workspace"))
    outcome = _host(space, console, "demo_grow.yaml", seed)
    if outcome["status"] == "completed":
        rehearse(space, console, str(outcome["run"]))
    finish(space, console, outcome, json=json)


@app.command()
def continual(
    workspace: WorkspaceOption = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    json: JsonOption = False,
) -> None:
    """A daemon learns three files while it is paused and killed; every version is measured."""
    console = Console()
    space = new_workspace(workspace or Path("demo-continual"))
    report = play(space, console, seed)
    print_story(console, report)
    if json:
        print_json(report)


@app.command()
def bootstrap(
    workspace: WorkspaceOption = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="All ten tasks, stricter gates; one stops it (docs/bootstrap.md).")
    ] = False,
    json: JsonOption = False,
) -> None:
    """The embedded base model teaches itself to follow instructions, then a constitution, in six stages."""
    console = Console()
    space = new_workspace(workspace or Path("demo-bootstrap"))
    asset = "demo_bootstrap_full.yaml" if full else "demo_bootstrap.yaml"
    finish(space, console, _host(space, console, asset, seed), json=json)


@app.command()
def experts(
    workspace: WorkspaceOption = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    text: Annotated[bool, typer.Option("--text", help="Only text, not the drawn screens.")] = False,
    screens: Annotated[bool, typer.Option("--screens", help="Only the drawn screens, not text.")] = False,
    json: JsonOption = False,
) -> None:
    """Four experts that the base lacks, one router, 32 mixed questions: of text, then of drawn screens."""
    console = Console()
    space = new_workspace(workspace or Path("demo-experts"))
    results: dict[str, Any] = {}
    if text or not screens:
        results["text"] = _experts_part(space, console, "demo_experts.yaml", seed, "experts", Path.cwd())
    if screens or not text:
        folder = write_screens(space.root / "screens", seed)
        results["screens"] = _experts_part(
            space, console, "demo_experts_screens.yaml", seed, "screens", folder
        )
    if json:
        print_json(results)


def _experts_part(
    space: Workspace, console: Console, asset: str, seed: int, name: str, folder: Path
) -> dict[str, Any]:
    """One job of the experts' demo and its questions; the run's result. Leaves where the run fails."""
    outcome = _host(space, console, asset, seed, folder)
    run_dir = space.run_dir(str(outcome["run"]))
    if outcome["status"] == "completed":
        asked = ask_experts(space, console, run_dir, name)
        run_dir.write_result({**(run_dir.result() or {}), "asked": asked})
    finish(space, console, outcome, json=False)
    return run_dir.result() or {}


def _host(
    space: Workspace, console: Console, asset: str, seed: int, folder: Path | None = None
) -> dict[str, Any]:
    """Sign and run a job that ships with the package; the run as the host then shows it."""
    value = parse_yaml(files("scaler_wizard.assets").joinpath(asset).read_text(encoding="utf-8"), asset)
    value["training"]["seed"] = seed
    job = parse_job(value, folder or Path.cwd())
    console.print(
        "This demo signs its own contract and answers its own gates, and says so where it does.",
        highlight=False,
    )
    job = sign(
        job,
        f"{getpass.getuser()} (demo)",
        default_scope(job),
        DEFAULT_ROLLBACK_PLAN,
        datetime.now(UTC),
        str(uuid.uuid4()),
    )
    prepared = prepare(job, space)
    print_plan(console, prepared)
    return host_run(space, console, job=job, plan=prepared.plan)


def rehearse(space: Workspace, console: Console, run: str) -> None:
    """Show that the way back works: to P1 and forward again, verified by hash, timed."""
    with Client(space) as client:
        answer = client.call("rehearse_rollback", run=run, target_phase="P1")
    run_dir = space.run_dir(run)
    rehearsal = {key: answer[key] for key in ("rollback_seconds", "undo_seconds")}
    run_dir.write_result({**(run_dir.result() or {}), "rehearsal": rehearsal})
    back, forward = (1000 * seconds for seconds in rehearsal.values())
    console.print(
        f"the way back, rehearsed: {answer['message']} ({answer['checkpoint']}, hashes verified, "
        f"{back:.0f} ms), and forward again ({forward:.0f} ms)",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
