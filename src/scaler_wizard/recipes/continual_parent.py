"""The version that a run of a lineage starts from, as the host wrote it into the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.errors import RunError
from scaler_wizard.specs.job import LineageJob


@dataclass(frozen=True)
class Parent:
    """A version of a lineage, or the model that the lineage starts from."""

    lineage: str
    version: int | None
    """None before the first version."""
    base: Path | None
    """Whole model to load; None for the job's own base model."""
    adapter: Path | None
    """Adapter on that model; None for a fresh one."""
    sha256: str | None
    base_sha256: str | None
    """Of the base's weights, where an earlier version measured it."""
    replay: tuple[str, ...]
    """Inputs of the lineage's earlier files, oldest first."""

    @property
    def directory(self) -> Path | None:
        """Where the version's own files are; None before the first version."""
        return None if self.version is None else self.adapter or self.base

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.lineage} v{self.version:03d}" if self.version is not None else "the base model"


def read_parent(value: Mapping[str, Any] | None, job: LineageJob) -> Parent:
    """parent.json as a record; the job's base model where there is none.

    Raises:
        RunError: not what the host writes.
    """
    if value is None:
        return Parent(job.lineage.model_name, None, None, None, None, None, ())
    try:
        version = value.get("version")
        adapter = value.get("adapter")
        # Until a version is a whole model the job names the base, with its revision and its tokenizer.
        own = value.get("base_version") is None
        return Parent(
            lineage=str(value["lineage"]),
            version=None if version is None else int(version),
            base=None if own else Path(str(value["base"])),
            adapter=None if adapter is None else Path(str(adapter)),
            sha256=_text(value.get("sha256")),
            base_sha256=_text(value.get("base_sha256")),
            replay=tuple(str(path) for path in value.get("replay") or ()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"parent.json cannot be used: {error!r}", "the file as this program wrote it",
            "skip the file and drop it again",
        ) from None  # fmt: skip


def _text(value: object) -> str | None:
    return None if value is None else str(value)
