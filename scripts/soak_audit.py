"""What must hold in a workspace after a soak test, read from the disk when nobody is at work in it.

Every check names what it found in words; the numbers of the soak are the lengths of these lists. Changes
nothing, and believes nothing of what the daemon said about itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scaler_wizard.jobs.health_checks import (
    check_checkpoints,
    check_flight_log,
    check_runs,
    check_versions,
)
from scaler_wizard.store import queries, versions
from scaler_wizard.store.database import Database
from scaler_wizard.store.lock import HostLock
from scaler_wizard.store.records import Run, Version
from scaler_wizard.store.states import FINISHED
from scaler_wizard.store.workspace import Workspace

MOST_RUNS = 100_000


@dataclass(frozen=True)
class Audit:
    """What is wrong, in words; empty lists are the goal."""

    lost: tuple[str, ...]
    """Contents that were neither learned nor failed with a reason, and learned ones that no version holds."""
    double: tuple[str, ...]
    """Contents learned twice."""
    corrupt: tuple[str, ...]
    """Databases, logs, checkpoints and versions whose hashes or checks do not hold."""
    stuck: tuple[str, ...]
    """Runs that are neither finished nor moving, and processes that are left."""
    completed: int
    failed: int


def audit(space: Workspace, dropped: Mapping[str, Sequence[str]], left: Sequence[int]) -> Audit:
    """Look at everything.

    Args:
        dropped: SHA-256 of each content -> the names under which it was put into the inbox.
        left: processes of the workspace that are still alive.
    """
    with HostLock.acquire(space.lock), Database.open(space.database_address) as database:
        damage = database.quick_check()
        with database.session() as connection:
            runs = queries.list_runs(connection, limit=MOST_RUNS)
            known = versions.list_versions(connection)
            orphans = versions.orphans(connection, space)
    by_content: dict[str, list[Run]] = {digest: [] for digest in dropped}
    for run in runs:
        by_content.setdefault(run.job["file"]["sha256"], []).append(run)
    corrupt = [*_damages(space, runs, known), *_originals(space, dropped)]
    corrupt += [f"{path.name} is a version that no row knows" for path, _ in orphans]
    if damage != "ok":
        corrupt.append(f"the database: {damage}")
    stuck = [f"{run.id} is {run.status}" for run in runs if run.status not in FINISHED]
    stuck += [f"process {pid} is left" for pid in left]
    return Audit(
        tuple(_lost(by_content, dropped, known)), tuple(_double(by_content, known)), tuple(corrupt),
        tuple(stuck), *(sum(run.status == word for run in runs) for word in ("completed", "failed")),
    )  # fmt: skip


def _lost(
    by_content: Mapping[str, list[Run]], dropped: Mapping[str, Sequence[str]], known: Sequence[Version]
) -> Iterator[str]:
    for digest, names in dropped.items():
        runs = by_content[digest]
        if not any(run.status == "completed" or (run.status == "failed" and run.error) for run in runs):
            states = ", ".join(run.status for run in runs) or "never taken"
            yield f"{names[0] if names else digest}: {states}"
    yield from _not_in_the_line(by_content, known)


def _not_in_the_line(by_content: Mapping[str, list[Run]], known: Sequence[Version]) -> Iterator[str]:
    """Each promoted version stands on all before it; else the newest has forgotten that a file was there."""
    rows = {version.id: version for version in known}
    newest = next((version for version in known if version.status == "current"), None)
    line: set[str | None] = set()
    while newest is not None:
        line.add(newest.run_id)
        newest = rows[newest.parent_id] if newest.parent_id is not None else None
    held = {version.run_id for version in known if version.status == "held"}
    for runs in by_content.values():
        for run in runs:
            if run.status == "completed" and run.id not in line | held:
                yield f"{run.id} completed, and the current version does not stand on it"


def _double(by_content: Mapping[str, list[Run]], known: Sequence[Version]) -> Iterator[str]:
    for runs in by_content.values():
        done = [run.id for run in runs if run.status == "completed"]
        if len(done) > 1:
            yield f"one content, completed by {', '.join(done)}"
    for run_id, number in Counter(version.run_id for version in known).items():
        if number > 1:
            yield f"{number} versions of {run_id}"


def _damages(space: Workspace, runs: Sequence[Run], known: Sequence[Version]) -> Iterator[str]:
    """Every hash of every checkpoint and version, every line of every log."""
    rows: list[Mapping[str, Any]] = [
        {**asdict(version), "folder": versions.folder_of(space, version)} for version in known
    ]
    checks = (
        check_flight_log(space), check_runs(space, {run.id: str(run.status) for run in runs}),
        check_checkpoints(space, deep=True), check_versions(space, rows, deep=True),
    )  # fmt: skip
    yield from (finding.words for check in checks for finding in check)
    for run_dir in space.run_dirs():
        reader = run_dir.read_events()
        numbers = [event.seq for event in reader]
        if reader.skipped or numbers != sorted(set(numbers)):
            yield f"the events of {run_dir.id}: {reader.skipped} lines cannot be read"
        for path in (run_dir.path / "checkpoints" / ".quarantine").glob("*.reason.json"):
            yield f"{run_dir.id}: a checkpoint was set aside: {path.read_text()}"


def _originals(space: Workspace, dropped: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A person's files are only read."""
    for digest, names in dropped.items():
        for name in names:
            if hashlib.sha256((space.inbox / name).read_bytes()).hexdigest() != digest:
                yield f"{name} in the inbox was changed"
