"""One run's directory: the only reader and writer of its files, each with its type.

    job.json, plan.json     what was asked, and the plan made of it
    run.json                identity: id, UUID, name, time of creation
    events.jsonl            measurements, append-only (see `events_file`)
    cockpit_payload.json    the newest glance at the run
    exit_status.json        how the last worker ended, fsynced
    result.json             what the run achieved
    parent.json             the model version that a continual run starts from, or experts will follow
    until.json              the phase after which a person wants the run to pause
    checkpoints/            see `checkpoints`
    snapshots/              metrics per phase (see `snapshots`)
    export/, report.html, worker.log, run.lock

Decisions are not here but in the state database. Everything read is checked: someone may have edited it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from scaler_wizard.errors import RunError
from scaler_wizard.specs.cockpit import CockpitPayload
from scaler_wizard.specs.events import Event
from scaler_wizard.store.durable import OS, FileSystem, json_text, write_atomic
from scaler_wizard.store.events_file import EventReader, follow_events

MAX_JSON_BYTES = 16 << 20
Outcome = Literal["completed", "paused", "stopped", "failed"]


@dataclass(frozen=True)
class RunIdentity:
    """run.json."""

    id: str
    uuid: str
    name: str
    created: float
    """Unix time in seconds."""


@dataclass(frozen=True)
class ExitStatus:
    """exit_status.json: a worker that leaves without writing it was interrupted, whatever its exit code."""

    attempt: int
    """The fencing token of the attempt: an older number than the current one says nothing."""
    outcome: Outcome
    reason: str = ""
    advice: str = ""
    error: Mapping[str, str] | None = None
    """`ScalerError.as_dict()` of what ended it."""
    rollback_to: str | None = None
    """Phase that the host is to roll back to, asked for at a gate."""
    time: float = 0.0


class RunDir:
    """Typed access to one run directory."""

    def __init__(self, path: Path, fs: FileSystem = OS) -> None:
        self.path = path
        self.fs = fs
        self.checkpoints = path / "checkpoints"
        self.snapshots = path / "snapshots"
        self.export = path / "export"
        self.events = path / "events.jsonl"
        self.report = path / "report.html"
        self.worker_log = path / "worker.log"
        self.lock = path / "run.lock"

    @classmethod
    def create(cls, path: Path, name: str, fs: FileSystem = OS) -> RunDir:
        """Make the directory, durably, with its identity; FileExistsError when there is one already."""
        run = cls(path, fs)
        fs.mkdir(path)
        for folder in (run.checkpoints, run.snapshots, run.export):
            fs.mkdir(folder)
        identity = RunIdentity(path.name, str(uuid.uuid4()), name, time.time())
        run._write("run.json", asdict(identity))
        fs.fsync(path.parent)
        return run

    @property
    def id(self) -> str:
        """The run's id: the directory's name."""
        return self.path.name

    def identity(self) -> RunIdentity:
        """run.json.

        Raises:
            RunError: missing or damaged.
        """
        value = self._require("run.json")
        try:
            return RunIdentity(
                str(value["id"]), str(uuid.UUID(value["uuid"])), str(value["name"]), float(value["created"])
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged("run.json", f"{type(error).__name__}: {error}") from None

    def created(self) -> float:
        """Unix time of creation; the directory's own time where run.json cannot be read."""
        try:
            return self.identity().created
        except RunError:
            return self.path.stat().st_mtime

    def write_job(self, job: Mapping[str, Any]) -> None:
        """Write job.json: the job spec as `model_dump(mode="json")` gives it."""
        self._write("job.json", job)

    def job(self) -> dict[str, Any]:
        """job.json, for the recipe's spec to parse; RunError when missing or damaged."""
        return self._require("job.json")

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write plan.json."""
        self._write("plan.json", plan)

    def plan(self) -> dict[str, Any] | None:
        """plan.json, or None before planning; RunError when damaged."""
        return self._read("plan.json")

    def write_parent(self, parent: Mapping[str, Any]) -> None:
        """Write parent.json: a `versions.parent_record`."""
        self._write("parent.json", parent)

    def parent(self) -> dict[str, Any] | None:
        """parent.json, or None where the run continues no lineage or has not begun; RunError when damaged."""
        return self._read("parent.json")

    def write_until(self, phase: str | None) -> None:
        """Let the run pause after a phase; None: go on to the end."""
        self._write("until.json", {"phase": phase})

    def until(self) -> str | None:
        """The phase after which the run is to pause."""
        phase = (self._read("until.json") or {}).get("phase")
        return phase if isinstance(phase, str) else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json."""
        self._write("result.json", result)

    def result(self) -> dict[str, Any] | None:
        """result.json, or None before the end; RunError when damaged."""
        return self._read("result.json")

    def write_cockpit_payload(self, payload: CockpitPayload) -> None:
        """Replace cockpit_payload.json. Atomic, but not synced: it is written again at the next step."""
        text = payload.model_dump_json(by_alias=True, indent=1)
        write_atomic(self.path / "cockpit_payload.json", text, durable=False, fs=self.fs)

    def cockpit_payload(self) -> CockpitPayload | None:
        """The newest payload, or None before the first; RunError when damaged."""
        value = self._read("cockpit_payload.json")
        if value is None:
            return None
        try:
            return CockpitPayload.model_validate(value)
        except ValidationError as error:
            raise self._damaged("cockpit_payload.json", error.errors()[0]["msg"]) from None

    def write_exit_status(self, status: ExitStatus) -> None:
        """Write exit_status.json and wait until it is on the disk: the worker's last act."""
        self._write("exit_status.json", asdict(status))

    def exit_status(self) -> ExitStatus | None:
        """How the last worker ended, or None when it did not say (or said it unreadably: interrupted)."""
        try:
            value = self._read("exit_status.json")
            if value is None or value["outcome"] not in get_args(Outcome):
                return None
            return ExitStatus(
                attempt=int(value["attempt"]),
                outcome=value["outcome"],
                reason=str(value.get("reason", "")),
                advice=str(value.get("advice", "")),
                error={str(k): str(v) for k, v in value["error"].items()} if value.get("error") else None,
                rollback_to=str(value["rollback_to"]) if value.get("rollback_to") else None,
                time=float(value.get("time", 0.0)),
            )
        except (RunError, KeyError, TypeError, ValueError, AttributeError):
            return None

    def read_events(self, from_seq: int = 0) -> EventReader:
        """Iterate over the events from `from_seq` on, in bounded memory; `.skipped` counts bad lines."""
        return EventReader(self.events, from_seq)

    def follow_events(
        self, stop: Callable[[], bool], poll: float = 0.2, from_seq: int = 0
    ) -> Iterator[Event]:
        """Yield events as they are written, until `stop()` is true and nothing is left. `poll` in seconds."""
        return follow_events(self.events, stop, poll, from_seq)

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        write_atomic(self.path / name, json_text(value), fs=self.fs)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            with (self.path / name).open("rb") as file:
                data = file.read(MAX_JSON_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._damaged(name, str(error.strerror)) from error
        if len(data) > MAX_JSON_BYTES:
            raise self._damaged(name, f"more than {MAX_JSON_BYTES:,} bytes")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._damaged(name, str(error)) from None
        if not isinstance(value, dict):
            raise self._damaged(name, f"holds a {type(value).__name__}")
        return value

    def _require(self, name: str) -> dict[str, Any]:
        value = self._read(name)
        if value is None:
            raise self._damaged(name, "is missing")
        return value

    def _damaged(self, name: str, why: str) -> RunError:
        return RunError(
            f"{name} of run {self.id} cannot be used: {why}",
            "the file as this program wrote it",
            f"restore {self.path / name} from a backup, or start a new run",
        )
