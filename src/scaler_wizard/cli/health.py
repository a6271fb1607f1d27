"""`scaler health [--fix]`: is everything in this workspace as it should be?"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from scaler_wizard.cli.options import JsonOption, WorkspaceOption, existing_workspace, print_json, user_name
from scaler_wizard.errors import ScalerError, WorkspaceError
from scaler_wizard.jobs.client import Client
from scaler_wizard.jobs.health_checks import Finding, file_checks
from scaler_wizard.store import backup
from scaler_wizard.store.workspace import Workspace

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def health(
    fix: Annotated[bool, typer.Option("--fix", help="Put right what can be put right without loss.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every byte and compare hashes; slow with large models.")
    ] = False,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Check database, files, hashes, config, disk and permissions; exit code 1 when something is wrong."""
    space = existing_workspace(workspace)
    started = time.monotonic()
    facts, findings = _facts(space)
    findings += file_checks(space, facts, deep)
    shown: list[dict[str, Any]] = []
    for finding in findings:
        fixed = fix and _repair(finding)
        row = {key: value for key, value in asdict(finding).items() if key != "repair"}
        shown.append({**row, "fixed": fixed, "fixable": finding.repair is not None})
        typer.echo(f"{finding.severity}: {finding.words}")
        if finding.fix:
            label = "fixed" if fixed else "--fix" if finding.repair is not None else "what to do"
            typer.echo(f"  {label}: {finding.fix}")
    left = [row for row in shown if not row["fixed"]]
    if not findings:
        typer.echo(
            f"all is well ({'every byte read' if deep else 'sizes and manifests; --deep reads every byte'})"
        )
    if json:
        seconds = round(time.monotonic() - started, 2)
        print_json({"ok": not left, "findings": shown, "deep": deep, "seconds": seconds})
    raise typer.Exit(1 if left else 0)


def _facts(space: Workspace) -> tuple[dict[str, Any], list[Finding]]:
    """What the database says, or why it cannot be asked and what to do then."""
    try:
        with Client(space) as client:
            facts = client.call("health_facts")
    except WorkspaceError as error:
        newest = backup.latest(space)
        todo = f"`scaler backup restore {newest.name}`" if newest is not None else error.todo
        return {}, [Finding("database", "error", error.found, todo)]
    findings = []
    if facts["database"] != "ok":
        todo = "`scaler backup restore latest`"
        findings.append(Finding("database", "error", f"the database is damaged: {facts['database']}", todo))

    def tidy() -> None:
        with Client(space) as client:
            client.call("tidy", by=user_name())

    for name in facts["orphans"]:
        words = f"version {name} is on disk, but not in the database"
        findings.append(Finding("versions", "warning", words, "entered as held", tidy))
    for name in facts["sweepable"]:
        findings.append(Finding("versions", "warning", f"deleted version {name} has files", "removed", tidy))
    return facts, findings


def _repair(finding: Finding) -> bool:
    if finding.repair is None:
        return False
    try:
        finding.repair()
    except (ScalerError, OSError) as error:
        typer.echo(f"  could not be fixed: {error}")
        return False
    return True
