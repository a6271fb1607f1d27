"""Whether a dropped file can be learned from: read once from end to end, before it is queued. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.data.problems import KINDS
from scaler_wizard.data.validate import validate_file
from scaler_wizard.errors import EmptyDataError
from scaler_wizard.jobs.prepare import prepare
from scaler_wizard.specs.continual import ContinualJob, LearningDataSection
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


def check_file(
    path: Path, data: LearningDataSection, quarantine: Path, on_progress: Callable[[int, int], None]
) -> Checked:
    """Read the whole file; lines that cannot be used are set aside in `quarantine`.

    Args:
        on_progress: called now and then; what it raises ends the check.

    Raises:
        DataError: no usable row, a file type that is not read, or (under `on_bad_line: fail`) a bad line.
    """
    report = validate_file(
        path, data.level.lower(), quarantine=quarantine, on_bad_line=data.on_bad_line, on_progress=on_progress
    )
    fatal = [problem for problem in report.problems if KINDS[problem.kind].severity == "fatal"]
    if fatal or not report.accepted:
        found = [f"{KINDS[one.kind].words}: {one.example}".removesuffix(": ") for one in report.problems]
        why = "; ".join(found[:3]) or "it holds no row"
        raise EmptyDataError(
            f"{path.name} cannot be learned from ({why})", "at least one row that can be learned from",
            "mend the file and drop it again"
            + (f"; what is wrong with each line stands in {quarantine}" if report.quarantine else ""),
        )  # fmt: skip
    return Checked(report.accepted, report.quarantined, report.row_format or "")


def plan_file(job: ContinualJob, workspace: Workspace) -> dict[str, Any]:
    """The plan of one file's run, made from headers, hardware and the first rows; no weight is read.

    Raises:
        DataError, SpecError, ModelError, LimitError: it cannot be learned on this machine.
    """
    return prepare(job, workspace).plan.as_dict()
