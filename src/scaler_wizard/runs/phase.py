"""What a recipe tells the engine: phases, gates, and how to save and restore itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from scaler_wizard.runs.context import PhaseContext
    from scaler_wizard.store.checkpoint_files import Checkpoint

Metrics = dict[str, Any]


@dataclass(frozen=True)
class GateRequest:
    """What a person is asked before a phase. `sentence` has at most 120 characters."""

    sentence: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """One phase: `body` does the work and returns its metrics (JSON-ready); `gate` is asked before it."""

    name: str
    title: str
    body: Callable[[PhaseContext], Metrics]
    gate: Callable[[PhaseContext], GateRequest] | None = None


class Recipe(Protocol):
    """A recipe owns the model and nothing else: no loop over phases, no retry, no storage."""

    def restore(self, checkpoint: Checkpoint | None, done: dict[str, Metrics]) -> None:
        """Become what was saved in `checkpoint` (None: nothing yet; kind "step": in the middle of a phase).

        `done` holds the metrics of the committed phases by name; the engine adds to it as the run goes on.
        """

    def phases(self) -> Iterator[Phase]:
        """All phases in order; those already committed are skipped by the engine, by name."""

    def save(self, directory: Path) -> None:
        """Write everything `restore` needs (safetensors and JSON) into an empty directory."""

    def finish(self, context: PhaseContext, done: dict[str, Metrics]) -> Metrics:
        """After the last phase: the run's result for report, registry and `--json`."""
