"""What `scaler demo continual` prints at its end: accuracy, versions, lines set aside, the log."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

DIFFICULTIES = ("easy", "medium", "hard")


def print_story(console: Console, report: Mapping[str, Any]) -> None:
    """Print the report."""
    console.print()
    console.print(accuracy_table(report))
    for lesson in report["files"]:
        _say(console, f"{lesson['file']}: {_forgetting(lesson)}; gap {_gap(lesson['gap'])}")
        for warning in lesson["warnings"]:
            _say(console, f"  look at this: {warning}")
    console.print()
    for version in report["versions"]:
        _say(
            console,
            f"{version['lineage']} {version['version']} {version['status']}: {version['description']}",
        )
    for refused in report["refused"]:
        _say(console, f"{refused['file']} failed: {refused['error']}")
    for name in report["duplicates"]:
        _say(console, f"{name} is a duplicate and was not learned again")
    for line in report["quarantined"]:
        _say(console, f"set aside: {line['reason']}")
    console.print()
    _say(console, "What happened:")
    for event in report["events"]:
        clock = datetime.fromtimestamp(event["time"]).strftime("%H:%M:%S")
        _say(console, f"  {clock}  {event['subject']}: {event['words']}")
    console.print()
    rose = "rose with every file" if report["rose"] else "did NOT rise everywhere"
    _say(console, f"validation accuracy {rose}; {report['seconds']:.0f} s; seed {report['seed']}")


def accuracy_table(report: Mapping[str, Any]) -> Table:
    """Accuracy by difficulty before and after each file, with n and 95% intervals."""
    n = report["files"][0]["validation"]["easy"]["n"]
    table = Table(title=f"right answers to the fixed questions, n {n} each, 95% interval", box=None)
    table.add_column("after")
    for difficulty in DIFFICULTIES:
        table.add_column(difficulty, justify="right")
    first = report["files"][0]["validation"]
    table.add_row("the base model", *(_share(first[name]["before"]) for name in DIFFICULTIES))
    for lesson in report["files"]:
        found = lesson["validation"]
        table.add_row(Text(lesson["file"]), *(_share(found[name]["after"]) for name in DIFFICULTIES))
    return table


def _share(side: Mapping[str, Any]) -> str:
    low, high = side["ci95"]
    return f"{side['value']:.2f} [{low:.2f}, {high:.2f}]"


def _forgetting(lesson: Mapping[str, Any]) -> str:
    earlier = lesson["forgetting"]
    if earlier is None:
        return "the first file: nothing to forget yet"
    before, after = earlier["before"]["value"], earlier["after"]["value"]
    return (
        f"held-out rows of earlier files {before:.2f} -> {after:.2f} (lost {earlier['lost']}, gained "
        f"{earlier['gained']} of {earlier['n']}, paired p {earlier['p_value']:.2g})"
    )


def _gap(gap: Mapping[str, Any]) -> str:
    return gap["kind"] if gap["value"] is None else f"{gap['value']:.2f} nats ({gap['kind']})"


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
