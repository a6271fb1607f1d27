"""What a completed run made, hashed and laid ready in a thread of its own, before the database hears of it.

Hashing and copying a whole model takes minutes; the host answers everybody else meanwhile. Nothing here needs
the database: what is cut short is done again from the start, and `version_files.stage` clears what was left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaler_wizard.errors import ScalerError
from scaler_wizard.store import registry
from scaler_wizard.store.records import ModelKind
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.version_files import StagedVersion, stage
from scaler_wizard.store.workspace import Workspace

EXPORT_KINDS: tuple[ModelKind, ...] = ("adapter", "merged")


@dataclass(frozen=True)
class Registration:
    """One model for the registry; its name carries the content's hash: a run that was rolled back and
    finished again exports another model."""

    name: str
    kind: ModelKind
    path: Path
    sha256: str
    run_id: str | None = None
    parent: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Staging:
    """The preparation of one run's models. `start` it in a thread, or `work` here."""

    def __init__(self, workspace: Workspace, run_dir: RunDir) -> None:
        self.workspace = workspace
        self.run_dir = run_dir
        self.models: tuple[Registration, ...] = ()
        self.version: StagedVersion | None = None
        self.problem: ScalerError | OSError | None = None
        """Why the models could not be hashed."""
        self.failure: ScalerError | OSError | None = None
        """Why the version could not be staged."""
        # A daemon that ends does not wait for it: the next one begins anew.
        self._thread = threading.Thread(target=self.work, name=f"stage {run_dir.id}", daemon=True)

    def start(self) -> None:
        """Begin in a thread."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it is still at work."""
        return self._thread.is_alive()

    def work(self) -> None:
        """Hash and stage; what went wrong is kept for who publishes."""
        try:
            result = self.run_dir.result() or {}
            self.models = _registrations(self.run_dir, result)
        except (ScalerError, OSError) as error:
            self.problem = error
        try:
            result = self.run_dir.result() or {}
            if "version" in result:
                self.version = stage(self.workspace, self.run_dir, result, time.time())
        except (ScalerError, OSError) as error:
            self.failure = error


def _registrations(run_dir: RunDir, result: Mapping[str, Any]) -> tuple[Registration, ...]:
    if "model" not in result:
        return ()
    path = Path(result["model"]["path"])
    digest = registry.content_hash(path)
    base = Registration(f"{path.name[:40]}-{digest[:12]}", "base", path, digest)
    made = [base]
    for kind in EXPORT_KINDS:
        if place := (result.get("export") or {}).get(kind):
            digest = registry.content_hash(Path(place))
            made.append(
                Registration(
                    f"{run_dir.id[:44]}-{kind}-{digest[:11]}", kind, Path(place), digest, run_dir.id,
                    base.name, result.get("summary") or {},
                )
            )  # fmt: skip
    return tuple(made)
