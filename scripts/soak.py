"""Kill the daemon, its workers and their checkpoint writers with -9 at random instants, a thousand times.

A fresh workspace, a real daemon, small files dropped into its inbox all the while, some of them twice. After
the last kill the daemon is left alone until everything is learned; then every hash is checked. The last line
is one JSON object: {kills, lost, double, corrupt, stuck} and more; all of these but kills must be 0, and no
daemon may have ended by itself, else the exit code is 1.

    python scripts/soak.py --json --kills 1000
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scaler_wizard.store.states import FINISHED
from soak_audit import audit
from soak_field import WORKER, WRITER, Field

# What a kill hits, and how often. A writer is alive only for moments: mostly it goes with its worker.
TARGETS: dict[tuple[tuple[str, ...], bool], int] = {
    ((WORKER,), False): 35,
    ((WORKER, WRITER), False): 15,
    ((WRITER,), False): 10,
    ((), True): 25,
    ((WORKER, WRITER), True): 15,
}
MOST_WAITING = 2
STUCK_SEC = 180.0
AIM_SEC = 10.0
STEP_PATIENCE_SEC = 120.0
LONG_FILE_ROWS = 20_000


def fire(field: Field, kills: int, gap_sec: float, until: float, show: Callable[[int], None]) -> int:
    """Kill at random instants until so many were hit or time is up."""
    hit = 0
    while hit < kills and time.monotonic() < until:
        field.start_daemon()
        feed(field)
        wait(field, gap_sec)
        words, daemon = field.rng.choices(list(TARGETS), list(TARGETS.values()))[0]
        hit += field.kill(words, daemon=daemon)
        show(min(hit, kills))
    field.start_daemon()
    return hit


def wait(field: Field, gap_sec: float) -> None:
    """Until some instant; half of the time one shortly after a worker has reported something, because on a
    busy machine most of a worker's life is the import of torch."""
    if field.rng.random() < 0.5:
        before, until = field.reported(), time.monotonic() + AIM_SEC
        while field.reported() <= before and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(field.rng.uniform(0.0, 1.0))
    else:
        time.sleep(field.rng.uniform(0.0, 2 * gap_sec))


def feed(field: Field) -> None:
    """Keep a few files waiting; now and then one that was there before."""
    runs = field.runs()
    if runs is None:
        return
    waiting = sum(run["status"] not in FINISHED for run in runs) + len(field.dropped) - len(runs)
    if waiting < MOST_WAITING:
        field.drop(field.rng.choice((8, 20, 60, 200)))
        if field.rng.random() < 0.2:
            field.drop_again()


def drain(field: Field, stuck_sec: float) -> None:
    """Leave the daemon alone until every file has its end, or nothing has moved for so long."""
    before: Any = None
    moved = time.monotonic()
    while time.monotonic() - moved < stuck_sec:
        field.start_daemon()
        runs = field.runs()
        if runs is not None:
            if len(runs) >= len(field.dropped) and all(run["status"] in FINISHED for run in runs):
                return
            now = ({run["run"]: run["status"] for run in runs}, field.reported())
            if now != before:
                before, moved = now, time.monotonic()
        time.sleep(0.2)


def recoveries(field: Field, number: int) -> dict[str, list[float]]:
    """Seconds from a SIGKILL to the next training step: of the worker alone, and of the daemon with it."""
    found: dict[str, list[float]] = {"worker": [], "worker_and_daemon": []}
    if number == 0:
        return found
    known = len(field.space.run_dirs())
    field.drop(LONG_FILE_ROWS, "long.jsonl")
    until = time.monotonic() + STEP_PATIENCE_SEC
    while len(field.space.run_dirs()) == known and time.monotonic() < until:
        time.sleep(0.05)
    for kind in [kind for kind in found for _ in range(number)]:
        if field.first_step(time.time(), STEP_PATIENCE_SEC) is None:
            break
        time.sleep(field.rng.uniform(0.3, 1.0))
        killed = time.time()
        field.kill((WORKER, WRITER), daemon=kind == "worker_and_daemon")
        field.start_daemon()
        step = field.first_step(killed, STEP_PATIENCE_SEC)
        if step is not None:
            found[kind].append(round(step - killed, 2))
    field.skip("long.jsonl")
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile (nearest rank), the longest, and how many."""
    ordered = sorted(values)
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    return {"median": statistics.median(ordered), "p95": p95, "max": ordered[-1], "n": len(ordered)}


def soak(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole test; its result."""
    field = Field(root, random.Random(arguments.seed))
    started = time.monotonic()
    columns = (TextColumn("kills"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("kills", total=arguments.kills)
            until = started + 60 * arguments.minutes
            hit = fire(
                field, arguments.kills, arguments.gap, until, lambda n: progress.update(task, completed=n)
            )
        seconds = time.monotonic() - started
        drain(field, STUCK_SEC)
        recovered = recoveries(field, arguments.recoveries)
        drain(field, STUCK_SEC)
        stopped = field.stop_daemon(30.0)
        time.sleep(0.5)
        found = audit(field.space, field.dropped, field.processes())
    finally:
        field.kill((WORKER, WRITER), daemon=True)
    for name in ("lost", "double", "corrupt", "stuck"):
        for text in getattr(found, name):
            print(f"{name}: {text}", file=sys.stderr)
    for text in field.own_ends:
        print(f"a daemon ended by itself: {text}", file=sys.stderr)
    return {
        "kills": hit, "lost": len(found.lost), "double": len(found.double), "corrupt": len(found.corrupt),
        "stuck": len(found.stuck), "daemon_ended_itself": len(field.own_ends) + (not stopped),
        "files": len(field.dropped), "dropped_twice": sum(len(names) > 1 for names in field.dropped.values()),
        "completed": found.completed, "failed": found.failed, "seed": arguments.seed,
        "seconds": round(seconds, 1), "seconds_with_checks": round(time.monotonic() - started, 1),
        "recovery_sec": {
            kind: spread(values) for kind, values in recovered.items() if values
        },
    }  # fmt: skip


def main() -> int:
    """Run, print, and say by the exit code whether all was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--gap", type=float, default=3.0, help="mean seconds between two kills")
    parser.add_argument("--minutes", type=float, default=600.0, help="kill no longer than this")
    parser.add_argument("--recoveries", type=int, default=5, help="kills of each kind that are timed")
    parser.add_argument("--keep", type=Path, help="a new folder for the workspace, which then stays")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr, flush=True)
    root = arguments.keep or Path(tempfile.mkdtemp(prefix="soak"))
    try:
        result = soak(root / "w", arguments)
    finally:
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)
    if not arguments.json:
        print(json.dumps(result, indent=2))
    print(json.dumps(result))
    wrong = ("lost", "double", "corrupt", "stuck", "daemon_ended_itself")
    return int(any(result[name] for name in wrong))


if __name__ == "__main__":
    sys.exit(main())
