"""`scaler approve|abort|pause|stop|skip RUN`: a person's word, from any terminal."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from scaler_wizard.cli.options import (
    JsonOption,
    WorkspaceOption,
    existing_workspace,
    print_json,
    user_name,
)
from scaler_wizard.jobs.client import Client

ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept with the decision.")]
OptionalRun = Annotated[
    str | None,
    typer.Argument(help="A run id, its beginning, or its file's name; left out: the daemon's queue."),
]

RunAtWork = Annotated[
    str, typer.Argument(help="A run id, its beginning, or its file's name; left out: the run at work.")
]


def decide(
    workspace: Path | None, run: str, action: str, reason: str, json: bool, target: str | None = None
) -> None:
    """Send one decision and print what became of it."""
    with Client(existing_workspace(workspace)) as client:
        answer: dict[str, Any] = client.call(
            "command", run=client.call("find_run", name=run)["run"], action=action, reason=reason,
            target_phase=target, by=user_name(), decision_id=uuid.uuid4().hex,
        )  # fmt: skip
    typer.echo(answer["message"])
    if json:
        print_json(answer)


def _command(action: str, summary: str) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help=summary)
    def command(
        run: RunAtWork = "",
        reason: ReasonOption = "",
        workspace: WorkspaceOption = None,
        json: JsonOption = False,
    ) -> None:
        decide(workspace, run, action, reason, json)

    return app


approve_app = _command("approve", "Answer a waiting gate: go on.")
abort_app = _command("abort", "End a run after its step; everything committed stays.")
stop_app = _command(
    "abort", "Finish the step, save, and end the run; `scaler resume` can still go on with it."
)
skip_app = _command("skip", "Leave this file and go on with the next one; everything committed stays.")
pause_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@pause_app.command()
def pause(
    run: OptionalRun = None,
    reason: ReasonOption = "",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Pause a run after its step, or without a name the daemon's queue and what it works on.

    `scaler resume` continues at the very next batch.
    """
    with Client(existing_workspace(workspace)) as client:
        if run is not None or not client.call("ping").get("daemon"):
            decide(workspace, run or "", "pause", reason, json)
            return
        answer = client.call("pause_queue", reason=reason, by=user_name())
    typer.echo(answer["message"])
    if json:
        print_json(answer)
