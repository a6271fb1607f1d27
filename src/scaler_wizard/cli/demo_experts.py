"""What `scaler demo experts` does after its run: asks the promoted experts, and shows who answered what."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scaler_wizard.cli.experts_options import find_bundle
from scaler_wizard.data.routing import RoutingRow, read_routing
from scaler_wizard.errors import ModelNotFoundError, RunError
from scaler_wizard.jobs.client import Client
from scaler_wizard.serving.client import ANSWER_SEC, ExpertsClient, encoded
from scaler_wizard.serving.engine_process import Answer
from scaler_wizard.store.experts_bundle import Bundle
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

QUESTIONS = 32


def ask_experts(space: Workspace, console: Console, run_dir: RunDir, name: str) -> dict[str, Any]:
    """Answer 32 mixed held-out inputs with what is in service and show them; {questions, right, work}."""
    bundle, version = _bundle(space, console, name)
    rows = mixed(_test_rows(run_dir), QUESTIONS)
    with ExpertsClient(bundle.folder) as client:
        futures = [
            client.process.submit(row.prompt, image_b64=encoded(row.image)) for row in rows
        ]  # together: the engine mixes them
        answers = [future.result(ANSWER_SEC) for future in futures]
    console.print(answer_table(rows, answers))
    work: Counter[str] = Counter()
    for answer in answers:
        work.update(dict(answer.counters))
    right = sum(_same(answer.answer, row.answer) for answer, row in zip(answers, rows, strict=True))
    sent = sum(answer.expert == row.label for answer, row in zip(answers, rows, strict=True))
    each = {key: total / len(rows) for key, total in work.items()}
    _say(console, (
        f"{right} of {len(rows)} right, {sent} sent to their own expert. Work for each input: "
        f"{each['prefills']:.2f} prefills, {each['router_forwards']:.2f} router passes, "
        f"{each['router_decode_steps']:.2f} tokens generated before the expert was known"
    ))  # fmt: skip
    # What is held answers only where it is named.
    named = ["--name", name, *(["--version", version] if version else []), "-w", str(space.root)]
    _say(console, f"ask more: {shlex.join(['scaler', 'experts', 'ask', *named, rows[0].prompt])}")
    return {
        "questions": len(rows), "right": right, "own_expert": sent, "work": dict(work),
        "answers": [asdict(answer) for answer in answers],
    }  # fmt: skip


def answer_table(rows: list[RoutingRow], answers: list[Answer]) -> Table:
    """One line a question: what was asked, who answered, how sure the router was, whether it is right."""
    table = Table("asked", "expert", "sure", "answer", "right", box=None)
    for row, answer in zip(rows, answers, strict=True):
        sure = "" if answer.confidence is None else f"{answer.confidence:.0%}"
        who = answer.expert + (" (abstained)" if answer.abstained else "")
        right = "yes" if _same(answer.answer, row.answer) else f"no: {row.answer[:40]}"
        table.add_row(Text(row.prompt[:60]), who, sure, Text(answer.answer[:40]), Text(right))
    return table


def mixed(rows: tuple[RoutingRow, ...], count: int) -> list[RoutingRow]:
    """The first rows of each expert in turn."""
    by_label: dict[str, list[RoutingRow]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    turns = [row for turn in zip(*by_label.values(), strict=False) for row in turn]
    return turns[:count]


def _test_rows(run_dir: RunDir) -> tuple[RoutingRow, ...]:
    folder = ((run_dir.result() or {}).get("experts") or {}).get("dataset", {}).get("folder")
    if not isinstance(folder, str):
        raise RunError(f"run {run_dir.id} has no routing set in its result", "a finished run", "run it again")
    return read_routing(Path(folder)).test


def _bundle(space: Workspace, console: Console, name: str) -> tuple[Bundle, str | None]:
    """What was promoted; where nothing was, what was held and its version, and that is said."""
    try:
        return find_bundle(space, name, None), None
    except ModelNotFoundError:
        _say(console, "nothing was promoted; the held version answers here, so that it can be looked at")
        with Client(space) as client:
            newest = str(client.call("versions", lineage=name)["versions"][0]["name"])
        return find_bundle(space, name, newest), newest


def _same(answer: str, reference: str) -> bool:
    return " ".join(answer.casefold().split()) == " ".join(reference.casefold().split())


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
