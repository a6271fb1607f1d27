"""head.json: which checkpoints count. The one file whose replacement commits, rolls back and undoes.

A pure record and its transitions; reading and writing it is here, deciding when is `checkpoints`' matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scaler_wizard.store.checkpoint_files import Checkpoint, is_sealed, phase_of, sealed, sequence_of
from scaler_wizard.store.durable import FileSystem, json_text, write_atomic
from scaler_wizard.store.names import SAFE_NAME

HEAD = "head.json"
# Written after head.json, read only when that one is damaged: a flipped bit on the disk must not take a
# rollback back.
MIRROR = "head.mirror.json"
HEAD_SCHEMA = 1
UNDO_LIMIT = 20
STEPS_KEPT = 2


@dataclass(frozen=True)
class Undo:
    """Where the run stood before a rollback."""

    chain: tuple[str, ...]
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Head:
    """The current position: phase checkpoints from P0 on, and partial states of the unfinished phase."""

    generation: int = 0
    chain: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    """Step checkpoints since the last phase, newest first, at most two."""
    undo: tuple[Undo, ...] = ()
    """Newest last."""
    next_sequence: int = 1

    @property
    def step(self) -> str | None:
        """The newest partial state of the unfinished phase."""
        return self.steps[0] if self.steps else None

    @property
    def parent(self) -> str | None:
        """What the next checkpoint descends from."""
        return self.chain[-1] if self.chain else None

    def with_phase(self, name: str) -> Head:
        """After committing phase checkpoint `name`: it replaces its phase, if there, and all after it."""
        phases = [phase_of(entry) for entry in self.chain]
        kept = self.chain[: phases.index(phase_of(name))] if phase_of(name) in phases else self.chain
        return self._next(chain=(*kept, name), steps=(), next_sequence=sequence_of(name) + 1)

    def with_step(self, name: str) -> Head:
        """After committing step checkpoint `name`."""
        return self._next(steps=(name, *self.steps)[:STEPS_KEPT], next_sequence=sequence_of(name) + 1)

    def rolled_back_to(self, name: str) -> Head:
        """With `name`, a member of the chain, as its last; where it stood goes on the undo list."""
        undo = (*self.undo, Undo(self.chain, self.steps))[-UNDO_LIMIT:]
        return self._next(chain=self.chain[: self.chain.index(name) + 1], steps=(), undo=undo)

    def begun_anew(self) -> Head:
        """Before the first phase again; what counted is remembered for an undo."""
        undo = (*self.undo, Undo(self.chain, self.steps))[-UNDO_LIMIT:]
        return self._next(chain=(), steps=(), undo=undo)

    def undone(self) -> Head:
        """Where it stood before the last rollback."""
        last = self.undo[-1]
        return self._next(chain=last.chain, steps=last.steps, undo=self.undo[:-1])

    def without(self, bad: Iterable[str]) -> Head:
        """After losing checkpoints: the chain ends at the last one that is not lost."""
        lost = set(bad)
        chain = list(self.chain)
        while chain and chain[-1] in lost:
            chain.pop()
        return self._next(chain=tuple(chain), steps=tuple(name for name in self.steps if name not in lost))

    def referenced(self) -> frozenset[str]:
        """Every checkpoint name that the head or its undo list mentions."""
        names = {*self.chain, *self.steps}
        for entry in self.undo:
            names.update(entry.chain, entry.steps)
        return frozenset(names)

    def _next(self, **changes: Any) -> Head:
        return replace(self, generation=self.generation + 1, **changes)


def read_head(directory: Path) -> Head | None:
    """The head, from its mirror when head.json is missing or damaged; None when neither can be read."""
    for name in (HEAD, MIRROR):
        try:
            value = json.loads((directory / name).read_bytes())
            if is_sealed(value) and value["schema"] == HEAD_SCHEMA:
                return Head(
                    generation=int(value["generation"]),
                    chain=_names(value["chain"]),
                    steps=_names(value["steps"]),
                    undo=tuple(Undo(_names(u["chain"]), _names(u["steps"])) for u in value["undo"]),
                    next_sequence=int(value["next_sequence"]),
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # damaged: the mirror, or the manifests, know
    return None


def _names(value: list[Any]) -> tuple[str, ...]:
    if not all(SAFE_NAME.fullmatch(name) for name in value):
        raise ValueError("a name that leads elsewhere")
    return tuple(value)


def write_head(directory: Path, head: Head, fs: FileSystem) -> None:
    """Replace the head. The moment head.json is renamed is the moment a commit or rollback happens."""
    text = json_text(sealed({"schema": HEAD_SCHEMA, **asdict(head)}))
    write_atomic(directory / HEAD, text, fs=fs)
    write_atomic(directory / MIRROR, text, fs=fs)


def rebuild_head(checkpoints: Iterable[Checkpoint]) -> Head:
    """A head from the manifests alone: the newest phase checkpoint, its parents, its partial states."""
    known = {checkpoint.name: checkpoint for checkpoint in checkpoints}
    newest_first = sorted(known.values(), key=lambda checkpoint: -checkpoint.sequence)
    chain: list[str] = []
    name = next((checkpoint.name for checkpoint in newest_first if checkpoint.kind == "phase"), None)
    while name is not None and name not in chain:
        chain.insert(0, name)
        name = known[name].parent if name in known else None
    tail = chain[-1] if chain else None
    steps = [
        checkpoint.name
        for checkpoint in newest_first
        if checkpoint.kind == "step"
        and checkpoint.parent == tail
        and checkpoint.sequence > sequence_of(tail or "")
    ]
    top = newest_first[0].sequence if newest_first else 0
    return Head(1, tuple(chain), tuple(steps[:STEPS_KEPT]), (), top + 1)
