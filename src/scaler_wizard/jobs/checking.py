"""Whether a dropped file can be learned from: read once from end to end, before it is queued. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.data.formats import detect_format, to_messages
from scaler_wizard.data.readers import read_rows
from scaler_wizard.data.rows import BadRows
from scaler_wizard.errors import EmptyDataError, RowError
from scaler_wizard.jobs.prepare import prepare
from scaler_wizard.specs.continual import ContinualJob, LearningDataSection
from scaler_wizard.store.durable import write_atomic
from scaler_wizard.store.workspace import Workspace


@dataclass(frozen=True)
class Checked:
    """What was found in a file."""

    rows: int
    """Rows that can be used."""
    quarantined: int
    """Rows that were set aside."""
    format: str
    """The row format, or "" where none was found."""


def check_file(path: Path, data: LearningDataSection, quarantine: Path) -> Checked:
    """Read the whole file as a job would; rows that cannot be used are listed in `quarantine` (JSON Lines).

    Raises:
        DataError: no usable row, no known format, damage after which no row can be found, or (under
            `on_bad_line: fail`) the first row that cannot be used.
    """
    bad = BadRows("quarantine" if data.on_bad_line == "quarantine" else "stop")
    found = detect_format(read_rows(path, bad_rows=BadRows("quarantine")), path.name)
    usable = 0
    for row in read_rows(path, max_rows=data.max_rows, bad_rows=bad):
        try:
            to_messages(row, found, source=path.name)
        except RowError as error:
            bad.add(row.number, error)
        else:
            usable += 1
    if bad.count:
        lines = [json.dumps({"row": number, "reason": reason}) for number, reason in bad.reasons]
        write_atomic(quarantine, "\n".join(lines) + "\n")
    if not usable:
        raise EmptyDataError(
            f"{path.name} holds no usable row ({bad.first()})", "at least one row that can be learned from",
            f"the reasons stand in {quarantine}; mend the file and drop it again",
        )  # fmt: skip
    return Checked(usable, bad.count, found)


def plan_file(job: ContinualJob, workspace: Workspace) -> dict[str, Any]:
    """The plan of one file's run, made from headers and hardware; no weight is read.

    Raises:
        DataError, SpecError, ModelError, LimitError: it cannot be learned on this machine.
    """
    return prepare(job, workspace).plan.as_dict()
