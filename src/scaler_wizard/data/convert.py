"""Any format that is read to messages JSON Lines, streamed, with a data profile applied on the way.

Conversations become `{"messages": [...]}`; plain text stays `{"text": ...}`; preference pairs become
`{"prompt": [...], "chosen": [...], "rejected": [...]}` in turns. Other keys of a row are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scaler_wizard.data.formats import Document, Message, RowFormat, row_format, to_messages, to_pair
from scaler_wizard.data.jsonl_writer import JsonlWriter
from scaler_wizard.data.profiles import Profile
from scaler_wizard.data.profiles.none import NONE
from scaler_wizard.data.quarantine import Quarantine
from scaler_wizard.data.readers import read_rows
from scaler_wizard.data.rows import BadRows, Row, row_error
from scaler_wizard.data.sniff import file_bytes, other_file_type
from scaler_wizard.errors import DataError, EmptyDataError, FormatError, RowError


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted."""

    source: str
    target: str | None
    """None for a dry run."""
    row_format: RowFormat
    profile: str
    rows: int
    quarantined: int
    quarantine: str | None

    def words(self) -> str:
        """One sentence for a person."""
        wrote = f"wrote {self.target}" if self.target else "dry run, nothing written"
        aside = f", {self.quarantined:,} set aside" if self.quarantined else ""
        aside += f" (in {self.quarantine})" if self.quarantine else ""
        profile = "" if self.profile == NONE.name else f" with profile {self.profile}"
        return f"{self.source}: {self.rows:,} rows of {self.row_format} format{profile}{aside}; {wrote}"


def convert_file(
    source: Path,
    target: Path | None,
    *,
    profile: Profile = NONE,
    seed: int = 0,
    system_prompt: str | None = None,
    quarantine: Path | None = None,
    on_bad_line: Literal["quarantine", "fail"] = "quarantine",
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write `source` as messages JSON Lines. `target` None converts and throws away: a dry run.

    The target appears when all rows are written; `source` itself is replaced only under `force`.

    Raises:
        DataError: see `JsonlWriter`; no usable row; a profile for plain text.
        RowError: a bad row under "fail", or damage after which no row can be found.
    """
    other = other_file_type(source)
    if other:
        raise FormatError(f"{source} is {other}", "UTF-8 text", "save it as UTF-8, or give it its suffix")
    if quarantine is not None and quarantine.resolve() in (source.resolve(), target and target.resolve()):
        raise DataError(f"{quarantine} is in use", "a quarantine file of its own", "name another file")
    rows = 0
    found: RowFormat | None = None
    size = file_bytes(source)
    with ExitStack() as stack:
        writer = stack.enter_context(JsonlWriter(target, force=force)) if target else None
        store = stack.enter_context(Quarantine(quarantine)) if quarantine and target else None
        bad = BadRows("stop" if on_bad_line == "fail" else "quarantine", sink=store.add if store else None)
        for this, value in _converted(source, bad, profile, seed, system_prompt):
            rows, found = rows + 1, this
            if writer is not None:
                writer.write(value)
            if on_progress is not None:
                on_progress(bad.bytes_read, size)
        if found is None:
            raise EmptyDataError(
                f"{source} has no usable row ({bad.first()})",
                "at least one row",
                "see `scaler data validate`",
            )
        written = store is not None and store.written
    return Conversion(
        str(source), str(target) if target else None, found, profile.name, rows, bad.count,
        str(quarantine) if written else None,
    )  # fmt: skip


def _converted(
    source: Path, bad: BadRows, profile: Profile, seed: int, system_prompt: str | None
) -> Iterator[tuple[RowFormat, dict[str, Any]]]:
    found: RowFormat | None = None
    for row in read_rows(source, bad_rows=bad):
        try:
            this = row_format(row.value)
            if this is None or (found is not None and this != found):
                reason = "no known format" if this is None else f"{this}, in a file of {found}"
                raise row_error(source, row.number, reason, "one known format a file", kind="format")
            value = _value(row, this, profile, seed, system_prompt, str(source))
        except RowError as error:
            bad.add(row.number, error, row.raw_text())
            continue
        found = this
        yield this, value


def _value(
    row: Row, found: RowFormat, profile: Profile, seed: int, system_prompt: str | None, source: str
) -> dict[str, Any]:
    if found == "preference":
        pair = to_pair(row, system_prompt, source)
        prompt = profile.apply((*pair.prompt, *pair.chosen), seed)[: len(pair.prompt)]
        answers = (
            profile.apply((*pair.prompt, *answer), seed)[len(pair.prompt) :]
            for answer in (pair.chosen, pair.rejected)
        )
        parts = zip(("prompt", "chosen", "rejected"), (prompt, *answers), strict=True)
        return {name: _dicts(turns) for name, turns in parts}
    said = to_messages(row, found, system_prompt, source)
    if isinstance(said, Document):
        if profile is not NONE:
            raise FormatError(
                f"{source} is plain text, and the profile {profile.name} shapes conversations",
                "rows with a question and an answer", "convert without --profile",
            )  # fmt: skip
        return {"text": said.text}
    return {"messages": _dicts(profile.apply(said.messages, seed))}


def _dicts(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [turn.as_dict() for turn in turns]
