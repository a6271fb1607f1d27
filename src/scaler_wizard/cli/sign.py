"""`scaler sign job.yaml`: a person takes responsibility, in words, in the file."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from scaler_wizard.cli.options import JobArgument, JsonOption, print_json, user_name
from scaler_wizard.errors import SpecError
from scaler_wizard.jobs.prepare import load_job
from scaler_wizard.safety.contract import DEFAULT_ROLLBACK_PLAN, check_job, default_scope, sign
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.specs.contract import SIGNOFF, Contract
from scaler_wizard.specs.job import FileJob
from scaler_wizard.specs.yaml_io import dump_yaml, parse_yaml, read_yaml
from scaler_wizard.store.durable import write_atomic

ByOption = Annotated[str | None, typer.Option(help="Who signs (asked when empty).")]
ScopeOption = Annotated[str | None, typer.Option(help="What may be done, in words (proposed from the job).")]
WayBackOption = Annotated[str | None, typer.Option("--rollback-plan", help="How you get back (proposed).")]
AcceptOption = Annotated[str | None, typer.Option(help=f'The sentence "{SIGNOFF}" (asked when empty).')]
_Signable = TypeVar("_Signable", bound=FileJob | ContinualConfig)
RUN_LIMITS = (
    "  the run keeps to: at most 90% of the free memory, at most 2x context per gate, gates that pause",
    "  without an answer, a checkpoint after every phase",
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def sign_job(
    job: JobArgument,
    by: ByOption = None,
    scope: ScopeOption = None,
    rollback_plan: WayBackOption = None,
    accept: AcceptOption = None,
    json: JsonOption = False,
) -> None:
    """Show what is signed, ask for the sentence, and write the contract into the job file."""
    contract = ceremony(load_job(job), job, RUN_LIMITS, by, scope, rollback_plan, accept)
    typer.echo(f"Signed by {contract.authorized_by}. Next: scaler run {job}")
    if json:
        print_json({"job": str(job), "contract": contract.model_dump(mode="json")})


def ceremony(
    spec: _Signable, file: Path, limits: tuple[str, ...], by: str | None, scope: str | None,
    rollback_plan: str | None, accept: str | None,
) -> Contract:  # fmt: skip
    """Show what is signed, ask for what was not given, and write the contract into `file`.

    Raises:
        ContractNotAcceptedError: the sentence, or something else, is not right; the file stays as it was.
    """
    scope = scope or default_scope(spec)
    rollback_plan = rollback_plan or DEFAULT_ROLLBACK_PLAN
    typer.echo(f"Contract 1.0.0 for {file}")
    typer.echo(f"  scope:    {scope}")
    typer.echo(f"  way back: {rollback_plan}")
    for line in limits:
        typer.echo(line)
    by = by or typer.prompt("Who signs", default=user_name())
    accept = accept or typer.prompt(f'Type "{SIGNOFF}"')
    signed = sign(spec, by, scope, rollback_plan, datetime.now(UTC), str(uuid.uuid4()), signoff=accept)
    check_job(signed)
    assert signed.contract is not None
    write_atomic(file, _with_contract(file, signed.contract))
    return signed.contract


def _with_contract(job: Path, contract: Contract) -> str:
    """The job file's text with the contract at its end; comments stay where that is possible."""
    section = {"contract": contract.model_dump(mode="json")}
    value = read_yaml(job)
    text = job.read_text(encoding="utf-8")
    if "contract" in value:
        # Where it stands at the end, as we write it, only it is replaced.
        text = text.partition("\ncontract:")[0]
    text = text.rstrip("\n") + "\n" + dump_yaml(section)
    whole = {**{key: item for key, item in value.items() if key != "contract"}, **section}
    try:
        if parse_yaml(text) == whole:
            return text
    except SpecError:
        pass  # not in block style: written anew, without its comments
    return dump_yaml(whole)
