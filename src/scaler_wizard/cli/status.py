"""`scaler status`: how the workspace stands, in one picture; with or without a living daemon."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scaler_wizard.cli.options import JsonOption, WorkspaceOption, existing_workspace, print_json
from scaler_wizard.jobs.client import Client
from scaler_wizard.store.queue import priority_word
from scaler_wizard.store.workspace import Workspace

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
GIB = 2**30
BAR_WIDTH = 28
STYLES = {"completed": "green", "failed": "bold red", "critical": "bold red", "warn": "yellow"}
GAP_STYLES = {"good": "green", "watch": "yellow", "overfit": "bold red"}


@app.command()
def status(workspace: WorkspaceOption = None, json: JsonOption = False) -> None:
    """Daemon, queue, the run at work, what was finished, and what you should know."""
    show_status(existing_workspace(workspace), json)


def show_status(space: Workspace, json: bool) -> None:
    """Ask and print once."""
    with Client(space) as client:
        answer = client.call("status")
    if json:
        print_json(answer)
    else:
        Console().print(render(answer), highlight=False)


class LiveStatus:
    """The picture in the foreground of a terminal; plain lines where it is no terminal. Thread-safe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lock = threading.Lock()
        self._live = Live(console=console, refresh_per_second=2, transient=True)

    def show(self, answer: Mapping[str, Any]) -> None:
        """The newest picture."""
        if self._live.is_started:
            self._live.update(render(answer))

    def say(self, line: str) -> None:
        """One line that stays."""
        with self._lock:
            self.console.print(Text(line), soft_wrap=True)

    def __enter__(self) -> LiveStatus:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()


def render(answer: Mapping[str, Any]) -> RenderableType:
    """The picture of a status answer."""
    parts: list[RenderableType] = [_daemon(answer), _queue(answer["queue"])]
    if answer["current"]:
        parts += [Text(), *_current(answer["current"])]
    seen = [one for one in answer["inbox"] if one["outcome"] != "queued"]
    if seen:
        parts += [Text(), *(Text(f"inbox: {_seen(one)}", style="dim") for one in seen)]
    if answer["recent"]:
        parts += [Text(), _recent(answer["recent"])]
    if answer["versions"]:
        parts += [Text(), _versions(answer["versions"])]
    if answer["alerts"]:
        parts.append(Text())
        parts += [Text(f"! {alert['text']}", style=STYLES[alert["severity"]]) for alert in answer["alerts"]]
    return Group(*parts)


def _daemon(answer: Mapping[str, Any]) -> Text:
    daemon = answer["daemon"]
    if daemon is None:
        return Text(f"no daemon runs in {answer['workspace']}; `scaler daemon start` starts one")
    state = "paused" if daemon["paused"] else "running"
    return Text(
        f"daemon {state}, process {daemon['pid']}, up {duration(daemon['uptime_sec'])}, {answer['workspace']}"
    )


def _queue(queue: Mapping[str, Any]) -> RenderableType:
    counts = [f"{number} {name}" for name, number in queue["counts"].items() if number]
    line = Text(f"queue: {', '.join(counts) if counts else 'empty'}")
    if not queue["next"]:
        return line
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for place, one in enumerate(queue["next"], start=1):
        wait = f"in {duration(one['waits_sec'])}" if one["waits_sec"] else ""
        retries = f"try {one['retries'] + 1}" if one["retries"] else ""
        table.add_row(f"  {place}.", Text(one["shown"]), priority_word(one["priority"]), retries, wait)
    return Group(line, table)


def _current(run: Mapping[str, Any]) -> list[RenderableType]:
    head = Text(f"{run['shown']}: {run['status']} [{run['phase']}] {run['activity']}", style="bold cyan")
    lines: list[RenderableType] = [head]
    if run["total"]:
        row = Table.grid(padding=(0, 1))
        eta = "" if run["eta_sec"] is None else f"{duration(run['eta_sec'])} left"
        row.add_row(
            ProgressBar(run["total"], run["done"], width=BAR_WIDTH), f"{run['done']}/{run['total']}", eta
        )
        lines.append(row)
    facts = [
        _fact("loss", run["loss"], ".3f"), _fact("validation loss", run["validation_loss"], ".3f"),
        _fact("accuracy of the last 20", run["accuracy_20"], ".2f"),
        _fact("of the last 50", run["accuracy_50"], ".2f"), _fact("tokens/s", run["tokens_per_sec"], ",.0f"),
        f"memory {run['memory_bytes'] / GIB:.2f} GiB" if run["memory_bytes"] else "",
    ]  # fmt: skip
    text = Text("  " + "; ".join(fact for fact in facts if fact))
    if run["gap"] is not None:
        text.append("; gap ").append(f"{run['gap']:+.3f} {run['gap_class']}", GAP_STYLES[run["gap_class"]])
    lines.append(text)
    for example in run["examples"]:
        mark = "right" if example["right"] else "wrong"
        shown = " -> ".join(_short(example.get(key)) for key in ("question", "answer"))
        lines.append(Text(f"  {mark}: {shown}", style="dim"))
    return lines


def _recent(recent: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for run in recent:
        at = datetime.fromtimestamp(run["ended"]).strftime("%m-%d %H:%M")
        style = STYLES.get(run["status"], "")
        table.add_row(Text(at, style="dim"), Text(run["status"], style=style), Text(run["shown"]))
    return table


def _seen(file: Mapping[str, Any]) -> str:
    note = f": {file['note']}" if file["note"] else ""
    return f"{file['name']} {file['outcome']}{note}"


def _versions(versions: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for version in versions:
        table.add_row(
            version["lineage"],
            version["version"],
            version["status"],
            Text(_short(version["description"], 80)),
        )
    return table


def _fact(name: str, value: float | None, form: str) -> str:
    return "" if value is None else f"{name} {value:{form}}"


def _short(value: object, most: int = 60) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(value or ""))
    return text if len(text) <= most else text[: most - 3] + "..."


def duration(seconds: float) -> str:
    """12 s, 3 min, 2 h 5 min, 4 d 1 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
