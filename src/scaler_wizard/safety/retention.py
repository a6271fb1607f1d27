"""What may be deleted to stay under the size limit: a pure decision over what was found and what is needed.

A checkpoint that ends a phase, anything that something points to, the newest two and the best of a run, and
whatever is young are kept whatever the limit says. Knows no disk and no database; `jobs.retention` looks and
acts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from scaler_wizard.specs.continual import RetentionSection

GB = 1e9
YOUNG_SECONDS = 3600.0
NEWEST_KEPT = 2

EntryKind = Literal["phase checkpoint", "step checkpoint", "quarantined checkpoint", "export", "input"]


@dataclass(frozen=True)
class Entry:
    """Something on disk that could be deleted."""

    name: str
    """Path relative to the workspace: what `protected` refers to."""
    kind: EntryKind
    run: str
    n_bytes: int
    """What deleting it frees."""
    created: float
    """Unix seconds."""
    loss: float | None = None
    """Of a checkpoint; the run's lowest is its best."""


@dataclass(frozen=True)
class Deletion:
    """One thing to delete, and why it may go."""

    entry: Entry
    reason: str


@dataclass(frozen=True)
class RetentionPlan:
    """What to delete, oldest first, and why the rest stays."""

    deletions: tuple[Deletion, ...]
    kept: Mapping[str, str]
    """Reason by name."""
    used_bytes: int
    after_bytes: int
    limit_bytes: int

    def words(self) -> str:
        """One sentence."""
        used, limit = self.used_bytes / GB, self.limit_bytes / GB
        if self.used_bytes <= self.limit_bytes:
            return f"{used:.2f} GB of {limit:g} GB used: nothing needs to go"
        if not self.deletions:
            return f"{used:.2f} GB used, over the limit of {limit:g} GB, and everything is protected or young"
        text = f"{used:.2f} GB used, over the limit of {limit:g} GB: {len(self.deletions)} things go"
        short = "" if self.after_bytes <= self.limit_bytes else " (still over: the rest is protected)"
        return f"{text}, {self.after_bytes / GB:.2f} GB stay{short}"


def plan_retention(
    entries: Iterable[Entry],
    protected: Mapping[str, str],
    section: RetentionSection,
    now: float,
    used_bytes: int,
) -> RetentionPlan:
    """Decide what to delete. Pure.

    Args:
        protected: reason by name of what is needed elsewhere: by a version or registry row, an open run,
            a snapshot of today or yesterday, replay.
        used_bytes: runs and checkpoints together, what is not among `entries` included.
    """
    found = sorted(entries, key=lambda entry: (entry.created, entry.name))
    kept = {entry.name: reason for entry in found if (reason := protected.get(entry.name))}
    for name, reason in _kept_by_rule(found, section, now).items():
        kept.setdefault(name, reason)
    limit = int(section.max_gb * GB)
    left = used_bytes
    deletions = []
    for entry in found:
        if left <= limit:
            break
        if entry.name not in kept and entry.n_bytes > 0:
            age = (now - entry.created) / 3600
            deletions.append(Deletion(entry, f"{entry.kind}, {age:.0f} h old, nothing points to it"))
            left -= entry.n_bytes
    return RetentionPlan(tuple(deletions), kept, used_bytes, left, limit)


def _kept_by_rule(entries: list[Entry], section: RetentionSection, now: float) -> dict[str, str]:
    kept: dict[str, str] = {}
    min_age = max(YOUNG_SECONDS, section.min_age_hours * 3600)
    for entry in entries:
        if entry.kind == "phase checkpoint":
            kept[entry.name] = "ends a phase"
        elif now - entry.created < min_age:
            kept[entry.name] = f"younger than {min_age / 3600:g} h"
    for run in {entry.run for entry in entries}:
        checkpoints = [
            e for e in entries if e.run == run and e.kind in ("phase checkpoint", "step checkpoint")
        ]
        for entry in checkpoints[-NEWEST_KEPT:]:
            kept.setdefault(entry.name, "among the newest two of its run")
        measured = [entry for entry in checkpoints if entry.loss is not None]
        if measured:
            best = min(measured, key=lambda entry: (entry.loss or 0.0, -entry.created))
            kept.setdefault(best.name, "the best of its run")
    return kept
