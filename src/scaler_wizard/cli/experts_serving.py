"""`scaler experts ask|serve-once|bench|serve`: questions to experts in service."""

from __future__ import annotations

import json as json_module
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from scaler_wizard.cli.experts_versions import NameOption, VersionOption, find_bundle
from scaler_wizard.cli.options import JsonOption, WorkspaceOption, existing_workspace, print_json
from scaler_wizard.data.readers import read_rows
from scaler_wizard.errors import DataError, EmptyDataError, ScalerError, UsageError
from scaler_wizard.serving.client import ExpertsClient, encoded
from scaler_wizard.serving.engine_process import Answer
from scaler_wizard.serving.http import as_json, check_host, new_token, run

FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="An exported bundle, instead of one of the workspace's.")
]
BaseOption = Annotated[str | None, typer.Option("--base", help="Another place of the same base model.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]


def add_commands(app: typer.Typer) -> None:
    """Put these commands into `scaler experts`."""
    app.command()(ask)
    app.command("serve-once")(serve_once)
    app.command()(bench)
    app.command()(serve)


@contextmanager
def serving(
    folder: Path | None, workspace: Path | None, name: str, version: str | None, base: str | None, device: str
) -> Iterator[ExpertsClient]:
    """An engine on the bundle that the options name."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise UsageError(f"--device {device}", "cpu, cuda or cuda:N", "leave it out: it is cpu")
    place = folder or find_bundle(existing_workspace(workspace), name, version).folder
    with ExpertsClient(place, base=base, device=device) as client:
        yield client


def ask(
    prompt: Annotated[str, typer.Argument(help="The question.")],
    image: Annotated[Path | None, typer.Option("--image", help="A picture to look at.")] = None,
    expert: Annotated[
        str | None, typer.Option("--expert", help="Skip the router; base is the base alone.")
    ] = None,
    name: NameOption = "experts",
    version: VersionOption = None,
    folder: FolderOption = None,
    base: BaseOption = None,
    device: DeviceOption = "cpu",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """One question: the answer, who gave it, and how sure the router was."""
    with serving(folder, workspace, name, version, base, device) as client:
        answer = client.ask(prompt, image, expert)
    console = Console()
    console.print(answer.answer, highlight=False, markup=False, soft_wrap=True)
    console.print(said(answer), style="dim", highlight=False, markup=False)
    if json:
        print_json(asdict(answer))


def serve_once(
    questions: Annotated[Path, typer.Argument(help='Rows {"prompt", "image"?, "expert"?} (JSON Lines).')],
    name: NameOption = "experts",
    version: VersionOption = None,
    folder: FolderOption = None,
    base: BaseOption = None,
    device: DeviceOption = "cpu",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Answer a file of questions together, one JSON object a line, in their order.

    A question that cannot be answered has its error in its line. --json adds a last line with the counts.
    """
    rows = _questions(questions)
    refused = 0
    with serving(folder, workspace, name, version, base, device) as client:
        futures = [client.process.submit(**row) for row in rows]
        for future in futures:
            try:
                line: dict[str, Any] = as_json(future.result())
            except ScalerError as error:
                line, refused = error.as_dict(), refused + 1
            print(json_module.dumps(line, ensure_ascii=False), flush=True)
    if json:
        print_json({"questions": len(rows), "answered": len(rows) - refused, "refused": refused})


def bench(
    questions: Annotated[Path, typer.Argument(help='Rows {"prompt", "image"?, "expert"?} (JSON Lines).')],
    name: NameOption = "experts",
    version: VersionOption = None,
    folder: FolderOption = None,
    base: BaseOption = None,
    device: DeviceOption = "cpu",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Answer a file of questions together and count the work for each: passes, not only seconds."""
    rows = _questions(questions)
    with serving(folder, workspace, name, version, base, device) as client:
        started = time.perf_counter()
        answers = [future.result() for future in [client.process.submit(**row) for row in rows]]
        seconds = time.perf_counter() - started
    work = {key: sum(answer.counters[key] for answer in answers) for key in answers[0].counters}
    for key, total in work.items():
        typer.echo(f"{key.replace('_', ' ')}: {total} ({total / len(answers):.2f} a question)")
    typer.echo(f"{len(answers)} questions in {seconds:.2f} s")
    if json:
        print_json({"questions": len(answers), "seconds": seconds, "work": work})


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8765,
    public: Annotated[bool, typer.Option("--public", help="Let other machines ask.")] = False,
    no_token: Annotated[bool, typer.Option("--no-token", help="Whoever reaches the port may ask.")] = False,
    name: NameOption = "experts",
    version: VersionOption = None,
    folder: FolderOption = None,
    base: BaseOption = None,
    device: DeviceOption = "cpu",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
) -> None:
    """Answer over HTTP until Ctrl-C. --json: address, token and labels as one object, once it is ready.

    POST / {prompt, image_b64?, expert?} -> {answer, expert, confidence, abstained}
    """
    check_host(host, public=public)
    if public and no_token:
        raise DataError(
            "--public with --no-token", "a token where other machines can ask", "leave one of them out"
        )
    token = None if no_token else new_token()
    with serving(folder, workspace, name, version, base, device) as client:
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        if json:
            print_json({"url": url, "token": token, "labels": list(client.labels)})
        else:
            print(f"experts {', '.join(client.labels)} at {url}", flush=True)
            if token is not None:
                print(f"Authorization: Bearer {token}", flush=True)
        run(client.process, host, port, token)


def said(answer: Answer) -> str:
    """Who answered, in words."""
    sure = "named" if answer.confidence is None else f"{answer.confidence:.0%} sure"
    unsure = ", abstained: the fallback answered" if answer.abstained else ""
    cut = ", cut off" if answer.finish == "length" else ""
    return f"{answer.expert} ({sure}{unsure}{cut})"


def _questions(source: Path) -> list[dict[str, Any]]:
    rows = [_question(row.number, row.value, source) for row in read_rows(source)]
    if not rows:
        raise EmptyDataError(f"no question in {source}", 'rows {"prompt": "..."}', "write at least one")
    return rows


def _question(number: int, value: dict[str, Any], source: Path) -> dict[str, Any]:
    unknown = sorted(set(value) - {"prompt", "image", "expert"})
    if unknown or not isinstance(value.get("prompt"), str):
        raise DataError(
            f"{source}, row {number}: {f'unknown key {unknown[0]!r}' if unknown else 'no prompt'}",
            '{"prompt": "...", "image"?: "file", "expert"?: "label"}', "mend the row",
        )  # fmt: skip
    image = value.get("image")
    if image is not None and not isinstance(image, str):
        raise DataError(f"{source}, row {number}: image is not a path", "a picture file", "mend the row")
    picture = encoded(source.parent / image) if image else None
    return {"prompt": value["prompt"], "image_b64": picture, "expert": value.get("expert")}
