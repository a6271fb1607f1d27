"""`scaler`: finds the command, runs it, prints errors. One module per command, imported only when used.

`scaler --help` must start in under 0.3 s, so the list below carries each command's one-line summary
and nothing is imported to print it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from scaler_wizard import __version__
from scaler_wizard.errors import ScalerError, UsageError

# name -> (module[:attribute], one line for --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Grow the embedded model through all phases; two to three minutes, offline."),
    "init": ("init", "Write a job file for your own model and data."),
    "recommend": ("recommend", "Which template suits your wish, your model and this machine."),
    "plan": ("plan", "Show phases, memory, time and a sample of the data; loads no weights."),
    "sign": ("sign", "Sign the contract of a job file."),
    "run": ("run", "Run a signed job; gates are asked here or answered from another terminal."),
    "experts": ("experts", "Many LoRA experts behind one router: make, measure, promote, serve."),
    "daemon": ("daemon", "A model that keeps learning from an inbox: init, sign, start, stop."),
    "status": ("status", "How the workspace stands: daemon, queue, the run at work, alerts."),
    "queue": ("queue", "What waits, and in which order."),
    "runs": ("runs", "List runs, or show one."),
    "watch": ("watch", "Follow a run live."),
    "report": ("report", "Write the HTML report of a run again."),
    "approve": ("decide:approve_app", "Answer a waiting gate: go on."),
    "pause": ("decide:pause_app", "Pause a run after its step, or the daemon's whole queue."),
    "resume": ("resume", "Continue a run that paused, failed or was killed, or the paused queue."),
    "stop": ("decide:stop_app", "Finish the step, save, and end the run."),
    "skip": ("decide:skip_app", "Leave a file and go on with the next one."),
    "clear": ("queue:clear_app", "Take everything that waits out of the queue."),
    "abort": ("decide:abort_app", "The same as stop, for a gate: end a run; everything committed stays."),
    "rollback": ("rollback", "Go back to an earlier phase (or undo that)."),
    "models": ("models", "Versions of a model that goes on learning: list, compare, restore, merge, delete."),
    "config": ("config", "Read, change and compare the workspace's settings."),
    "health": ("health", "Check a workspace, and put right what can be put right."),
    "backup": ("backup", "Back up the state of a workspace, and put it back."),
    "retention": ("backup:retention_app", "Delete old checkpoints that nothing needs; dry run first."),
    "data": ("data", "Check, look at, convert, generate and value data files."),
}


class LazyGroup(TyperGroup):
    """Commands by name; a module is imported when its command is the one that runs."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, (_, summary) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=summary), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            place, _, attribute = COMMANDS[name][0].partition(":")
            module = importlib.import_module(f"scaler_wizard.cli.{place}")
            command = typer.main.get_command(getattr(module, attribute or "app"))
            command.name = name
        return name, command, rest


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Grow a small open language model on your own hardware, safely, with a way back.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"scaler-wizard {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Grow a small open language model on your own hardware, safely, with a way back."""


def main() -> None:
    """Entry point: errors a person can cause become a short message and an exit code.

    With --json anywhere on the command line the last line is one JSON object, also for a command line that
    is not understood and for a question that nobody answered.
    """
    as_json = "--json" in sys.argv
    try:
        code = app(prog_name="scaler", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.TyperException as error:
        if "NoArgs" in type(error).__name__:
            sys.exit(error.exit_code)  # its help is printed already
        refuse(_misread(error), as_json)
    except typer.Abort:
        print()  # the question's line has no end
        refuse(
            UsageError(
                "a question was not answered with yes",
                "an answer",
                "answer it, or see --help for the option that does",
            ),
            as_json,
        )
    except ScalerError as error:
        refuse(error, as_json)
    except BrokenPipeError:
        # The reader (`| head`) has gone; Python would complain again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def refuse(error: ScalerError, as_json: bool) -> NoReturn:
    """Print the error, as one JSON object too where that was asked for, and leave with its exit code."""
    if as_json:
        print(json.dumps(error.as_dict()))
    print_error(error)
    sys.exit(error.exit_code)


def _misread(error: typer.TyperException) -> UsageError:
    """What the parser did not understand, in the words and with the exit code of our own errors."""
    message = " ".join(error.format_message().replace("Value error, ", "").split())
    path = getattr(getattr(error, "ctx", None), "command_path", "scaler")
    return UsageError(message.rstrip("."), "", f"see `{path} --help`")


def print_error(error: ScalerError) -> None:
    """What was found, what was expected, what to do: one line each, on standard error."""
    print(f"error: {error.found}", file=sys.stderr)
    if error.expected:
        print(f"  expected:   {error.expected}", file=sys.stderr)
    if error.todo:
        print(f"  what to do: {error.todo}", file=sys.stderr)


if __name__ == "__main__":
    main()
