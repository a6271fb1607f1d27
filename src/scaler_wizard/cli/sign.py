"""`scaler sign job.yaml`: a person takes responsibility, in words, in the file."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from scaler_wizard.cli.options import JobArgument, JsonOption, print_json, user_name
from scaler_wizard.errors import SpecError
from scaler_wizard.jobs.prepare import load_job
from scaler_wizard.safety.contract import DEFAULT_ROLLBACK_PLAN, check_job, default_scope, sign
from scaler_wizard.specs.contract import SIGNOFF, Contract
from scaler_wizard.specs.yaml_io import dump_yaml, parse_yaml, read_yaml
from scaler_wizard.store.durable import write_atomic

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def sign_job(
    job: JobArgument,
    by: Annotated[str | None, typer.Option(help="Who signs (asked when empty).")] = None,
    scope: Annotated[
        str | None, typer.Option(help="What may be done, in words (proposed from the job).")
    ] = None,
    rollback_plan: Annotated[str | None, typer.Option(help="How you get back (proposed).")] = None,
    accept: Annotated[str | None, typer.Option(help=f'The sentence "{SIGNOFF}" (asked when empty).')] = None,
    json: JsonOption = False,
) -> None:
    """Show what is signed, ask for the sentence, and write the contract into the job file."""
    spec = load_job(job)
    scope = scope or default_scope(spec)
    rollback_plan = rollback_plan or DEFAULT_ROLLBACK_PLAN
    typer.echo(f"Contract 1.0.0 for {job}")
    typer.echo(f"  scope:    {scope}")
    typer.echo(f"  way back: {rollback_plan}")
    typer.echo(
        "  the run keeps to: at most 90% of the free memory, at most 2x context per gate, a gate before"
    )
    typer.echo("  every expansion that pauses without an answer, a checkpoint after every phase")
    by = by or typer.prompt("Who signs", default=user_name())
    accept = accept or typer.prompt(f'Type "{SIGNOFF}"')
    signed = sign(spec, by, scope, rollback_plan, datetime.now(UTC), str(uuid.uuid4()), signoff=accept)
    check_job(signed)
    assert signed.contract is not None
    write_atomic(job, _with_contract(job, signed.contract))
    typer.echo(f"Signed by {by}. Next: scaler run {job}")
    if json:
        print_json({"job": str(job), "contract": signed.contract.model_dump(mode="json")})


def _with_contract(job: Path, contract: Contract) -> str:
    """The job file's text with the contract at its end; comments stay unless an old contract is replaced."""
    section = {"contract": contract.model_dump(mode="json")}
    value = read_yaml(job)
    whole = {**value, **section}
    if "contract" not in value:
        text = job.read_text(encoding="utf-8").rstrip("\n") + "\n" + dump_yaml(section)
        try:
            if parse_yaml(text) == whole:
                return text
        except SpecError:
            pass  # not in block style: written anew, without its comments
    return dump_yaml(whole)
