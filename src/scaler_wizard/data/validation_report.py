"""What validating a file found, for people (`words`) and programs (`as_dict`)."""

from __future__ import annotations

from dataclasses import dataclass

from scaler_wizard.data.formats import RowFormat
from scaler_wizard.data.lengths import LengthSummary
from scaler_wizard.data.problems import Problem


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """Counts are of rows; `accepted` + `quarantined` is all that was read."""

    path: str
    level: str
    file_bytes: int
    row_format: RowFormat | None
    """The format of the first row in a known one."""
    accepted: int
    """Usable rows, repeats among them."""
    quarantined: int
    """Rows set aside."""
    duplicates: int
    """Accepted rows that say the same as an earlier one."""
    problems: tuple[Problem, ...]
    """Worst kind first."""
    lengths: LengthSummary | None
    """Of the accepted rows; None at level quick."""
    quarantine: str | None
    """The file that bad lines were written to, where there were any and a place for them."""

    @property
    def fatal(self) -> bool:
        """Whether the file cannot be used as it is."""
        return any(problem.severity == "fatal" for problem in self.problems)

    @property
    def clean(self) -> bool:
        """Whether nothing at all was found."""
        return not self.problems

    def problem(self, kind: str) -> Problem | None:
        """The problem of one kind (a key of `problems.KINDS`), or None."""
        return next((problem for problem in self.problems if problem.kind == kind), None)

    def words(self) -> str:
        """The report as a few lines of text."""
        verdict = "cannot be used as it is" if self.fatal else "clean" if self.clean else "usable"
        lines = [
            f"{self.path}: {verdict} ({self.level} check)",
            f"  {self.row_format or 'unknown'} format, {self.file_bytes:,} bytes, {self.accepted:,} rows "
            f"accepted, {self.quarantined:,} set aside, {self.duplicates:,} duplicates",
        ]
        if self.lengths is not None:
            shares = ", ".join(f"{share}% <= {value:,}" for share, value in self.lengths.percentiles.items())
            lines.append(f"  length in {self.lengths.unit}: {shares}, longest {self.lengths.longest:,}")
        lines += [f"  {_MARKS[problem.severity]}: {problem.words()}" for problem in self.problems]
        if self.quarantine:
            lines.append(f"  lines set aside are in {self.quarantine}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready fields."""
        return {
            "path": self.path, "level": self.level, "bytes": self.file_bytes, "format": self.row_format,
            "fatal": self.fatal, "accepted": self.accepted, "quarantined": self.quarantined,
            "duplicates": self.duplicates, "problems": [problem.as_dict() for problem in self.problems],
            "lengths": self.lengths.as_dict() if self.lengths else None, "quarantine": self.quarantine,
        }  # fmt: skip


_MARKS = {"fatal": "fatal", "bad_line": "set aside", "warning": "warning"}
