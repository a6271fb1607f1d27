"""The checkpoints of one run: staged, committed, verified, rolled back; never half there.

A commit is: hash, manifest, fsync files, fsync staging directory, rename, fsync parent, replace head.json.
In an enumeration of torn, unsynced and reordered states this order lost nothing, where leaving out the
directory sync lost 14 of 66 and writing in place 120 of 156 (tests/faults enumerates the real code).
Rollback is one replacement of head.json. Damaged checkpoints are moved aside, never deleted.

One process at a time uses a store: the holder of the run lock. Knows files, not tensors.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scaler_wizard.errors import CheckpointError
from scaler_wizard.store.checkpoint_files import (
    MANIFEST,
    Checkpoint,
    DamagedCheckpoint,
    Kind,
    hash_files,
    manifest_bytes,
    phase_of,
    read_manifest,
    sequence_of,
    verify_directory,
)
from scaler_wizard.store.checkpoint_head import Head, read_head, rebuild_head, write_head
from scaler_wizard.store.durable import OS, FileSystem, fsync_tree, is_disk_full, json_text, write_atomic
from scaler_wizard.store.names import safe_name
from scaler_wizard.store.rundir import RunDir

_QUARANTINE = ".quarantine"
_STAGING = ".staging-"


@dataclass(frozen=True)
class Quarantined:
    """A checkpoint that was moved aside, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Recovery:
    """What `newest_verified` found."""

    checkpoint: Checkpoint | None
    """The state to go on from; None only when nothing was ever committed."""
    quarantined: tuple[Quarantined, ...] = ()
    head_rebuilt: bool = False
    """head.json and its mirror were unreadable; the position was found again from the manifests."""


@dataclass(frozen=True)
class RollbackResult:
    """A finished rollback."""

    checkpoint: Checkpoint
    seconds: float
    message: str


class Staging:
    """A directory to write a checkpoint's files into; leaving the `with` block uncommitted discards it."""

    def __init__(self, store: CheckpointStore, phase: str, path: Path) -> None:
        self.path = path
        self._store = store
        self._phase = phase
        self._used = False

    def commit(
        self,
        step: int,
        metrics: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        kind: Kind = "phase",
    ) -> Checkpoint:
        """Make the staged files the run's newest checkpoint; when it returns, it survives a power cut.

        Args:
            step: optimiser steps done in this phase.
            metrics, extra: JSON-ready; NaN becomes null.
            kind: "phase" ends a phase; "step" is a partial state of it.

        Raises:
            CheckpointError: nothing staged, a link among the files, disk full or failing (see
                `durable.is_disk_full`). The earlier checkpoints are as they were; this one is not retried.
        """
        assert not self._used, "a staging directory is committed once; after a failure stage again"
        self._used = True
        try:
            return self._store._commit(self.path, self._phase, kind, step, metrics or {}, extra or {})
        except OSError as error:
            todo = "free some space" if is_disk_full(error) else "check the disk (dmesg, smartctl)"
            raise CheckpointError(
                f"the checkpoint of phase {self._phase} could not be written ({error.strerror})",
                "a working disk with space",
                f"{todo}, then resume; the earlier checkpoints are intact",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # garbage: `newest_verified` sweeps it later
            self._store.fs.remove_tree(self.path)


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(self, run: RunDir, fs: FileSystem | None = None) -> None:
        self.directory = run.checkpoints
        self.fs = fs or run.fs or OS
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def stage(self, phase: str) -> Staging:
        """Open a staging directory for a checkpoint of `phase` (such as "P1" or "P3.1")."""
        safe_name(f"{phase}-0000", "phase")
        path = self.directory / f"{_STAGING}{phase}-{secrets.token_hex(4)}"
        try:
            self.fs.mkdir(path)
        except OSError as error:
            raise CheckpointError(
                f"cannot make {path} ({error.strerror})",
                "space and write permission",
                "free some space, then resume",
            ) from error
        return Staging(self, phase, path)

    def head(self) -> Head:
        """The current position.

        Raises:
            CheckpointError: head.json and its mirror are damaged; `newest_verified` repairs that.
        """
        head = read_head(self.directory)
        if head is None:
            if self.names() or self._has_quarantine():
                raise CheckpointError(
                    f"head.json in {self.directory} is missing or damaged",
                    "",
                    "resume the run: it is rebuilt then",
                )
            return Head()
        return head

    def chain(self) -> list[Checkpoint]:
        """The phase checkpoints from P0 to the current one (manifests read, files not verified)."""
        return [read_manifest(self.directory / name) for name in self.head().chain]

    def names(self) -> list[str]:
        """Names of all committed checkpoints on disk, also superseded and rolled-back ones, oldest first."""
        found = [p.name for p in self.directory.iterdir() if p.is_dir() and not p.name.startswith(".")]
        return sorted(found, key=lambda name: (sequence_of(name), name))

    def checkpoint(self, phase: str | int) -> Checkpoint:
        """The chain's checkpoint of a phase: "P3", 3 or "3" mean P3, else the latest P3.x.

        Raises:
            CheckpointError: the chain has none; names those it has.
        """
        wanted = f"P{phase}" if isinstance(phase, int) or re.fullmatch(r"[0-9.]+", phase) else phase
        chain = self.head().chain
        exact = [name for name in chain if phase_of(name) == wanted]
        parts = [name for name in chain if phase_of(name).startswith(f"{wanted}.")]
        if not exact and not parts:
            phases = ", ".join(phase_of(name) for name in chain)
            raise CheckpointError(
                f"there is no checkpoint of phase {wanted}",
                f"one of {phases}" if phases else "a finished phase",
                "name one of those" if phases else "let a phase finish first",
            )
        return read_manifest(self.directory / (exact or parts)[-1])

    def manifest(self, name: str) -> Checkpoint:
        """A checkpoint by its name, as its manifest describes it; its files are not hashed.

        Raises:
            CheckpointError: the manifest is missing or damaged.
        """
        return read_manifest(self.directory / safe_name(name, "checkpoint name"))

    def verify(self, checkpoint: Checkpoint | str) -> Checkpoint:
        """Hash all files (streaming) and return the checkpoint as its manifest says.

        Raises:
            CheckpointError: a file is missing, extra or changed, or cannot be read.
        """
        name = checkpoint if isinstance(checkpoint, str) else checkpoint.name
        return verify_directory(self.directory / safe_name(name, "checkpoint name"))

    def quarantine(self, checkpoint: Checkpoint | str, reason: str) -> Path:
        """Move a checkpoint into checkpoints/.quarantine, the reason beside it; returns its new path."""
        name = safe_name(checkpoint if isinstance(checkpoint, str) else checkpoint.name, "checkpoint name")
        folder = self.directory / _QUARANTINE
        if not folder.is_dir():
            self.fs.mkdir(folder)
            self.fs.fsync(self.directory)
        target = folder / name
        while target.exists():
            target = folder / f"{name}.{secrets.token_hex(2)}"
        if (self.directory / name).exists():  # else the whole directory is what is missing
            self.fs.rename(self.directory / name, target)
            self.fs.fsync(folder)
            self.fs.fsync(self.directory)
        note = json_text({"name": name, "reason": reason, "time": time.time()})
        with contextlib.suppress(OSError):  # on a full disk the move still works, and matters more
            write_atomic(folder / f"{target.name}.reason.json", note, fs=self.fs)
        return target

    def newest_verified(self) -> Recovery:
        """Find the newest checkpoint whose every byte is right: partial states first, then the chain back.

        Damaged ones on the way are quarantined and named in the result, and the head is moved to what was
        found. Also sweeps staging directories that a killed writer left.

        Raises:
            CheckpointError: there were checkpoints and all are damaged: never a silent start from nothing.
        """
        for leftover in self.directory.glob(f"{_STAGING}*"):
            self.fs.remove_tree(leftover)
        head = read_head(self.directory)
        rebuilt = head is None and bool(self.names())
        bad: list[Quarantined] = []
        if head is None:
            head = self._rebuild(bad)
        found: Checkpoint | None = None
        for name in (*head.steps, *reversed(head.chain)):
            try:
                found = self.verify(name)
                break
            except DamagedCheckpoint as damage:
                self.quarantine(name, damage.found)
                bad.append(Quarantined(name, damage.found))
        if found is None and (bad or head.chain or head.steps or self._has_quarantine()):
            reasons = "; ".join(item.reason for item in bad) or "see checkpoints/.quarantine"
            raise CheckpointError(
                f"no checkpoint in {self.directory} is intact ({reasons})",
                "at least one intact checkpoint",
                "restore the folder from a backup, or start a new run; nothing was deleted",
            )
        if bad or rebuilt:
            self._write_head(head.without(item.name for item in bad))
        return Recovery(found, tuple(bad), rebuilt)

    def rollback(self, phase: str | int) -> RollbackResult:
        """Make a phase's checkpoint the current state: verify it, replace the head, remember the way back.

        Raises:
            CheckpointError: no such phase, or its checkpoint is damaged; the head is then as it was.
        """
        start = time.perf_counter()
        target = self.verify(self.checkpoint(phase))
        head = self.head()
        if head.parent != target.name or head.steps:  # asked twice: nothing to do the second time
            self._write_head(head.rolled_back_to(target.name))
        return _rolled_back(target, start)

    def restart(self) -> bool:
        """Stand before the first phase, with every checkpoint kept; whether anything counted before.

        Raises:
            CheckpointError: the head cannot be read or written; it is then as it was.
        """
        head = self.head()
        if not head.chain and not head.steps:
            return False
        self._write_head(head.begun_anew())
        return True

    def undo_rollback(self) -> RollbackResult:
        """Go back to where the run stood before the last rollback.

        Raises:
            CheckpointError: there was no rollback, or its checkpoint is damaged.
        """
        start = time.perf_counter()
        head = self.head()
        if not head.undo:
            raise CheckpointError("there is no rollback to undo", "an earlier rollback", "")
        previous = head.undone()
        target = self.verify(previous.chain[-1])
        self._write_head(previous)
        return _rolled_back(target, start)

    def prune(self, keep_steps: int = 2) -> list[str]:
        """Delete superseded step checkpoints (see `plan_retention`) and return their names; OSError."""
        checkpoints = []
        for name in self.names():
            with contextlib.suppress(CheckpointError):  # damaged: evidence, not garbage
                checkpoints.append(read_manifest(self.directory / name))
        doomed = plan_retention(checkpoints, self.head().referenced(), keep_steps)
        for name in doomed:
            # Renamed first: a crash in the middle of deleting leaves garbage, not a damaged checkpoint.
            trash = self.directory / f"{_STAGING}pruned-{name}"
            self.fs.rename(self.directory / name, trash)
            self.fs.remove_tree(trash)
        return doomed

    def _commit(
        self,
        staged: Path,
        phase: str,
        kind: Kind,
        step: int,
        metrics: Mapping[str, Any],
        extra: Mapping[str, Any],
    ) -> Checkpoint:
        head = self.head()
        files = hash_files(staged)
        if not files:
            raise CheckpointError(
                f"nothing was staged for the checkpoint of phase {phase}", "at least one file"
            )
        manifest = manifest_bytes(phase, kind, step, time.time(), head.parent, files, metrics, extra)
        self.fs.write(staged / MANIFEST, manifest)
        fsync_tree(staged, fs=self.fs)
        target = self.directory / f"{phase}-{self._next_sequence(head):04d}"
        self.fs.rename(staged, target)
        self.fs.fsync(self.directory)
        after = head.with_phase(target.name) if kind == "phase" else head.with_step(target.name)
        write_head(self.directory, after, self.fs)
        return read_manifest(target)

    def _next_sequence(self, head: Head) -> int:
        """A number no checkpoint had: also an uncommitted orphan's or a quarantined one's is taken."""
        folder = self.directory / _QUARANTINE
        moved = [path.name.partition(".reason")[0] for path in folder.iterdir()] if folder.is_dir() else []
        known = [sequence_of(re.sub(r"(-\d+)\..*$", r"\1", name)) for name in (*self.names(), *moved)]
        return max([head.next_sequence, *(number + 1 for number in known)])

    def _rebuild(self, bad: list[Quarantined]) -> Head:
        readable = []
        for name in self.names():
            try:
                readable.append(read_manifest(self.directory / name))
            except DamagedCheckpoint as damage:
                self.quarantine(name, damage.found)
                bad.append(Quarantined(name, damage.found))
        return rebuild_head(readable)

    def _write_head(self, head: Head) -> None:
        try:
            write_head(self.directory, head, self.fs)
        except OSError as error:
            raise CheckpointError(
                f"head.json could not be replaced ({error.strerror})",
                "a working disk with space",
                "try again",
            ) from error

    def _has_quarantine(self) -> bool:
        return (self.directory / _QUARANTINE).is_dir() and any((self.directory / _QUARANTINE).iterdir())


def plan_retention(
    checkpoints: list[Checkpoint], referenced: frozenset[str], keep_steps: int = 2
) -> list[str]:
    """Names of the checkpoints that may be deleted, oldest first. Pure.

    Only step checkpoints that nothing refers to (head, undo list, a kept checkpoint's parent) and that
    are not among the newest `keep_steps` (at least 2) checkpoints; a phase checkpoint is never deleted.
    """
    by_age = sorted(checkpoints, key=lambda checkpoint: checkpoint.sequence)
    newest = {checkpoint.name for checkpoint in by_age[-max(2, keep_steps) :]}
    parents = {checkpoint.parent for checkpoint in checkpoints}
    return [
        checkpoint.name
        for checkpoint in by_age
        if checkpoint.kind == "step" and checkpoint.name not in newest | referenced | parents
    ]


def _rolled_back(checkpoint: Checkpoint, start: float) -> RollbackResult:
    place = checkpoint.phase.removeprefix("P")
    message = f"Rollback complete; you are now at phase {place}"
    return RollbackResult(checkpoint, time.perf_counter() - start, message)
