"""`scaler experts ask|serve-once|bench|serve`: questions to experts in service."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from scaler_wizard.cli.experts_options import Asked, QuestionsArgument, place_of, serving, with_asked
from scaler_wizard.cli.options import JsonOption, print_json
from scaler_wizard.data.readers import read_rows
from scaler_wizard.errors import DataError, EmptyDataError, ScalerError
from scaler_wizard.serving.client import ExpertsClient, encoded
from scaler_wizard.serving.engine_process import Answer
from scaler_wizard.serving.http import as_json, check_host, listen, new_token, run
from scaler_wizard.serving.kept_engine import KeptEngine


def add_commands(app: typer.Typer) -> None:
    """Put these commands into `scaler experts`."""
    app.command()(with_asked(ask))
    app.command("serve-once")(with_asked(serve_once))
    app.command()(with_asked(bench))
    app.command()(with_asked(serve))


def ask(
    asked: Asked,
    prompt: Annotated[str, typer.Argument(help="The question.")],
    image: Annotated[Path | None, typer.Option("--image", help="A picture to look at.")] = None,
    expert: Annotated[
        str | None, typer.Option("--expert", help="Skip the router; base is the base alone.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """One question: the answer, who gave it, and how sure the router was."""
    picture = encoded(image)
    with serving(asked) as client:
        answer = client.process.submit(prompt, image_b64=picture, expert=expert).result()
    console = Console()
    console.print(answer.answer, highlight=False, markup=False, soft_wrap=True)
    console.print(said(answer), style="dim", highlight=False, markup=False)
    if json:
        print_json(asdict(answer))


def serve_once(asked: Asked, questions: QuestionsArgument, json: JsonOption = False) -> None:
    """Answer a file of questions together, one JSON object a line, in their order.

    A question that cannot be answered has its error in its line; the exit code says so only where none was
    answered. --json adds a last line with the counts.
    """
    rows = read_questions(questions)
    _leave_without_answers(rows, [row for row in rows if isinstance(row, DataError)])
    refused: list[ScalerError] = []
    with serving(asked) as client:
        for found in answers_of(client, rows):
            if isinstance(found, ScalerError):
                refused.append(found)
            line = found.as_dict() if isinstance(found, ScalerError) else as_json(found)
            print(json_module.dumps(line, ensure_ascii=False), flush=True)
    if json:
        print_json({"questions": len(rows), "answered": len(rows) - len(refused), "refused": len(refused)})
    _leave_without_answers(rows, refused)


def bench(asked: Asked, questions: QuestionsArgument, json: JsonOption = False) -> None:
    """Answer a file of questions together and count the work for each: passes, not only seconds.

    Questions that cannot be answered are counted with their reasons; the exit code says so only where none
    was answered.
    """
    rows = read_questions(questions)
    _leave_without_answers(rows, [row for row in rows if isinstance(row, DataError)])
    with serving(asked) as client:
        started = time.perf_counter()
        found = list(answers_of(client, rows))
        seconds = time.perf_counter() - started
    answers = [one for one in found if isinstance(one, Answer)]
    refused = [one for one in found if isinstance(one, ScalerError)]
    work = Counter[str]()
    for answer in answers:
        work.update(answer.counters)
    for key, total in work.items():
        typer.echo(f"{key.replace('_', ' ')}: {total} ({total / len(answers):.2f} a question)")
    typer.echo(f"{len(answers)} questions in {seconds:.2f} s")
    reasons = Counter(error.found for error in refused)
    for reason, count in reasons.most_common():
        typer.echo(f"refused {count}: {reason}")
    if json:
        print_json({
            "questions": len(answers), "seconds": seconds, "work": work, "refused": len(refused),
            "reasons": reasons,
        })  # fmt: skip
    _leave_without_answers(rows, refused)


def serve(
    asked: Asked,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8765,
    public: Annotated[bool, typer.Option("--public", help="Let other machines ask.")] = False,
    no_token: Annotated[bool, typer.Option("--no-token", help="Whoever reaches the port may ask.")] = False,
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
    place, features = place_of(asked)
    with (
        listen(host, port) as listener,
        KeptEngine(place, base=asked.base, device=asked.device, features=features, say=_to_stderr) as engine,
    ):
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        if json:
            print_json({"url": url, "token": token, "labels": list(engine.labels)})
        else:
            print(f"experts {', '.join(engine.labels)} at {url}", flush=True)
            if token is not None:
                print(f"Authorization: Bearer {token}", flush=True)
        run(engine, listener, token)


def said(answer: Answer) -> str:
    """Who answered, in words."""
    sure = "named" if answer.confidence is None else f"{answer.confidence:.0%} sure"
    unsure = ", abstained: the fallback answered" if answer.abstained else ""
    cut = ", cut off" if answer.finish == "length" else ""
    return f"{answer.expert} ({sure}{unsure}{cut})"


Question = dict[str, Any]


def answers_of(client: ExpertsClient, rows: list[Question | DataError]) -> Iterator[Answer | ScalerError]:
    """What came back for each question, in their order; the engine works on all of them together."""
    waiting = [row if isinstance(row, DataError) else client.process.submit(**row) for row in rows]
    for one in waiting:
        if isinstance(one, DataError):
            yield one
            continue
        try:
            yield one.result()
        except ScalerError as error:
            yield error


def read_questions(source: Path) -> list[Question | DataError]:
    """The questions of a file; a row that is none is its error.

    Raises:
        DataError: a file that cannot be read, or that is not JSON Lines. EmptyDataError: no row.
    """
    rows: list[Question | DataError] = []
    for row in read_rows(source):
        try:
            rows.append(_question(row.number, row.value, source))
        except DataError as error:
            rows.append(error)
    if not rows:
        raise EmptyDataError(f"no question in {source}", 'rows {"prompt": "..."}', "write at least one")
    return rows


def _question(number: int, value: dict[str, Any], source: Path) -> Question:
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


def _leave_without_answers(rows: Sequence[object], refused: Sequence[ScalerError]) -> None:
    """Where nothing was answered, or nothing can be asked, the first reason is the command's own.

    Raises:
        ScalerError: it.
    """
    if len(refused) == len(rows):
        raise refused[0]


def _to_stderr(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
