"""The `continual` recipe: what a workspace's daemon learns, and the job of one file dropped into its inbox.

`ContinualConfig` is the workspace's `config.yaml`. Its learning sections are what a person signs; each file
becomes a `ContinualJob`, each merge of an adapter a `ConsolidateJob`, with exactly these sections, so that
one signature covers them all. How the daemon runs (queue, disk, retention, notifications) may change without
a new signature.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from scaler_wizard.specs.base import Spec
from scaler_wizard.specs.contract import Contract
from scaler_wizard.specs.sections import (
    NAME_PATTERN,
    BreakerSection,
    DataFormat,
    DatasetSection,
    GateSection,
    LoraSection,
    ModelSection,
    OptimiserSection,
    SafetySection,
    ScalingSection,
    VocabularySection,
)

Priority = Literal["high", "normal", "low"]
ProfileName = Literal["none", "emoji_think", "regime3"]

LOCKED = (
    "lineage.model_name",
    "lineage.max_length",
    "lineage.strategy",
    "lineage.vocabulary",
    "model.base_model",
)
"""Keys that stay after the first run unless `--unlock` is given: versions before and after would not fit."""


class LineageSection(Spec):
    """One model that goes on learning, version after version."""

    model_name: Annotated[str, Field(pattern=NAME_PATTERN)] = "assistant"
    """Name of the lineage; its versions are v001, v002... of this name."""
    max_length: Annotated[int, Field(ge=16, le=1_048_576)] | None = None
    """Longest row in tokens; the model's own context when empty."""
    strategy: Literal["lora", "full"] = "lora"
    """What a file trains: one adapter that goes on from version to version, or all weights."""
    vocabulary: list[str] = []
    """Texts that become one token each, once, before the first file."""
    lora: LoraSection = LoraSection()
    """Adapter settings; empty ones are suggested from hardware and data."""


class FileTrainingSection(OptimiserSection):
    """Budget and optimiser of one file."""

    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000_000
    """Most optimiser steps of one file, however long it is."""
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = 1.0
    """Passes over a file's rows."""


class LearningDataSection(Spec):
    """How rows of a dropped file are read."""

    format: DataFormat = "auto"
    """Row format; auto looks at the first rows and says what it found."""
    profile: ProfileName = "none"
    """How conversations are dressed before training, with the matching generation rules."""
    system_prompt: str | None = None
    """System turn put before every conversation that has none."""
    long_rows: Literal["split", "refuse"] = "split"
    """What happens to a row longer than max_length: split, or refused. Never cut silently."""
    on_bad_line: Literal["quarantine", "fail"] = "quarantine"
    """A line that cannot be read is set aside and counted, or fails the file."""
    level: Literal["QUICK", "STANDARD", "DEEP"] = "STANDARD"
    """How thoroughly a file is checked before it is queued."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Use at most this many rows of a file."""


class ReplaySection(Spec):
    """Earlier files mixed into each training, so that what was learned stays."""

    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of a file's training tokens that comes from earlier files."""
    max_rows: Annotated[int, Field(ge=0)] = 20_000
    """Most earlier rows that are kept at hand, drawn evenly from all earlier files."""


class ValidationSection(Spec):
    """The fixed questions that every version answers before and after each file."""

    easy: str | None = None
    """File of easy rows; generated tasks when all three are empty."""
    medium: str | None = None
    """File of medium rows."""
    hard: str | None = None
    """File of hard rows."""
    tasks: list[str] = []
    """Generators of the generated questions, where no file is named; those of general skills when empty."""
    rows: Annotated[int, Field(ge=8, le=100_000)] = 120
    """Rows of each difficulty that are answered."""
    held_out_fraction: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    """Share of a file's rows kept out of its training, to measure the gap."""
    check_every: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    """Steps between two quick looks during training: five held-out questions each; 0 for none."""
    forgetting: Annotated[float, Field(gt=0, le=1)] = 0.1
    """A fall of accuracy by more than this, with confidence, holds a version back."""


class QueueSection(Spec):
    """Inbox and queue."""

    poll_interval: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Seconds between two looks at the inbox where the system does not tell of changes."""
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = 2.0
    """A file is taken when its size and time have not changed for this long."""
    retries: Annotated[int, Field(ge=0, le=20)] = 2
    """Times a failed file is tried again, at low priority."""
    restarts: Annotated[int, Field(ge=0, le=100)] = 3
    """Most restarts of a worker within restart_window_sec, then the job fails with its evidence."""
    restart_window_sec: Annotated[float, Field(gt=0)] = 300.0
    """The window of `restarts`, in seconds."""
    recent_days: Annotated[float, Field(gt=0)] = 7.0
    """Days for which finished files are listed as recently completed."""


class WatchdogSection(Spec):
    """Seconds without progress after which a worker counts as hung, by what it is doing."""

    load: Annotated[float, Field(gt=0)] = 600.0
    """Starting, loading and restoring."""
    step: Annotated[float, Field(gt=0)] = 300.0
    """One training step or one report of an evaluation."""
    save: Annotated[float, Field(gt=0)] = 600.0
    """Writing a checkpoint or an export."""
    stop: Annotated[float, Field(gt=0)] = 120.0
    """From a request to pause or stop to the end of the worker."""


class DiskSection(Spec):
    """Free space that is kept."""

    refuse_below_gb: Annotated[float, Field(ge=0)] = 10.0
    """No job starts with less than this free."""
    warn_below_gb: Annotated[float, Field(ge=0)] = 50.0
    """Below this the person is told."""
    ballast_mb: Annotated[float, Field(ge=0)] = 16.0
    """Space held back in a file that is given up when the disk is full, so that the database can go on."""


class RetentionSection(Spec):
    """What may be deleted, and when. Versions, pinned and newest checkpoints are never among it."""

    max_gb: Annotated[float, Field(gt=0)] = 100.0
    """Runs and checkpoints together; above it, unprotected old checkpoints go, the oldest first."""
    min_age_hours: Annotated[float, Field(ge=1)] = 36.0
    """Nothing younger is deleted."""
    backups: Annotated[int, Field(ge=1, le=1000)] = 10
    """Backups of the state that are kept."""
    snapshot_at: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] = "03:00"
    """Local time of the daily snapshot."""
    consolidate_after: Annotated[int, Field(ge=0)] = 0
    """Merge the adapter into a new base version after this many versions, when idle; 0 never."""


class NotifySection(Spec):
    """Who is told, through Apprise (install the extra `notify`)."""

    urls: list[str] = []
    """Apprise addresses, for example "mailto://..." or "ntfy://..."."""
    events: list[Literal["failed", "finished", "gate", "disk"]] = ["failed", "finished", "gate", "disk"]
    """What is told."""


class FileSection(Spec):
    """The file a job learns from: the workspace's own copy."""

    path: str
    """The copy inside the run directory."""
    name: str
    """Its name in the inbox."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of its bytes."""
    description: Annotated[str, Field(max_length=2000)] = ""
    """What the JSON beside it says about it."""


class _Learning(Spec):
    """The sections that a person signs."""

    model: ModelSection
    """The model that the lineage starts from, and where it runs."""
    lineage: LineageSection = LineageSection()
    """One model that goes on learning."""
    training: FileTrainingSection = FileTrainingSection()
    """Budget and optimiser of one file; one pass over it unless said otherwise."""
    data: LearningDataSection = LearningDataSection()
    """How rows are read."""
    replay: ReplaySection = ReplaySection()
    """Earlier files mixed in against forgetting."""
    validation: ValidationSection = ValidationSection()
    """The fixed questions."""
    safety: SafetySection = SafetySection(
        circuit_breaker=BreakerSection(min_accuracy=0.0), gates=GateSection(ask="auto_approve")
    )
    """Breaker and reports. The signature stands for the gates: a file has none."""

    @property
    def scaling(self) -> ScalingSection:
        """The lineage in the words of `grow`, so that planning and model loading know one kind of section."""
        return ScalingSection(
            strategy=self.lineage.strategy,
            lora=self.lineage.lora,
            vocabulary=VocabularySection(add_tokens=self.lineage.vocabulary),
        )


LEARNING_SECTIONS = tuple(_Learning.model_fields)


class ContinualJob(_Learning):
    """Learn from one file."""

    recipe: Literal["continual"] = "continual"
    """Which recipe this job is for."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "file"
    """Name of the run's folder."""
    file: FileSection
    """The file to learn from."""
    contract: Contract | None = None
    """The workspace's standing contract."""

    @property
    def dataset(self) -> DatasetSection:
        """The file in the words of `grow`."""
        return DatasetSection(
            source="local", identifier=self.file.path, format=self.data.format,
            holdout_fraction=self.validation.held_out_fraction, max_rows=self.data.max_rows,
            long_rows=self.data.long_rows, system_prompt=self.data.system_prompt,
            bad_rows="quarantine" if self.data.on_bad_line == "quarantine" else "stop",
        )  # fmt: skip


class ConsolidateJob(_Learning):
    """Merge a lineage's adapter into a new base version; it learns nothing."""

    recipe: Literal["consolidate"] = "consolidate"
    """Which recipe this job is for."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "merge"
    """Name of the run's folder."""
    version: Annotated[int, Field(ge=1, le=999_999_999)]
    """Number of the version to merge; it must still be the current one when the run starts."""
    contract: Contract | None = None
    """The workspace's standing contract."""


class ContinualConfig(_Learning):
    """The workspace's config.yaml."""

    queue: QueueSection = QueueSection()
    """Inbox and queue."""
    watchdog: WatchdogSection = WatchdogSection()
    """When a worker counts as hung."""
    disk: DiskSection = DiskSection()
    """Free space that is kept."""
    retention: RetentionSection = RetentionSection()
    """What may be deleted, and when."""
    notify: NotifySection = NotifySection()
    """Who is told."""
    contract: Contract | None = None
    """The standing contract; `scaler daemon sign` writes it."""

    @model_validator(mode="after")
    def _validation_files(self) -> Self:
        named = [self.validation.easy, self.validation.medium, self.validation.hard]
        if any(named) and not all(named):
            raise ValueError("validation names some of easy, medium and hard; name all three or none")
        return self

    def job(self, name: str, file: FileSection) -> ContinualJob:
        """The job of one file, under this config's contract."""
        return ContinualJob(name=name, file=file, contract=self.contract, **self._learning())

    def consolidation(self, name: str, version: int) -> ConsolidateJob:
        """The job that merges a version, under this config's contract."""
        return ConsolidateJob(name=name, version=version, contract=self.contract, **self._learning())

    def _learning(self) -> dict[str, Any]:
        return {section: getattr(self, section) for section in LEARNING_SECTIONS}
