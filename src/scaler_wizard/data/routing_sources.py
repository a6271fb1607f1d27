"""An expert's own data set as rows of a routing set. Torch-free; every file is hostile input.

A row of any known format (`formats`) is read; its last answer is what the expert is expected to say, its
turns before that are the input, an `image` key names a picture below the source's image folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.data.fingerprints import fingerprint
from scaler_wizard.data.formats import Conversation, Message, RowFormat, detect_format, to_messages
from scaler_wizard.data.generate import generated_rows
from scaler_wizard.data.generators import GENERATORS
from scaler_wizard.data.readers import read_rows
from scaler_wizard.data.rows import Row, row_error
from scaler_wizard.errors import DataError, DataFileMissingError, WorkspaceError
from scaler_wizard.store.durable import sha256_file
from scaler_wizard.store.names import contained

MAX_IMAGE_BYTES = 64 << 20
MAX_SOURCE_ROWS = 1_000_000
_LEVELS = (1, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class RoutingSource:
    """Where the rows of one expert come from: a file, or a generated task."""

    label: str
    adapter: str
    """Name of the adapter that answers these rows."""
    path: Path | None = None
    generator: str | None = None
    levels: tuple[int, ...] = _LEVELS
    image_root: Path | None = None
    """Folder that the `image` of a row is relative to; the file's own folder when None."""
    limit: int | None = None
    """Read at most so many rows."""

    @property
    def name(self) -> str:
        """For `metadata.source_dataset`."""
        return self.path.name if self.path is not None else f"generated:{self.generator}"

    def record(self) -> dict[str, Any]:
        """What a manifest says about it: {label, adapter, source_dataset, sha256, limit}."""
        digest = sha256_file(self.path.resolve()) if self.path is not None and self.path.is_file() else None
        return {
            "label": self.label, "adapter": self.adapter, "source_dataset": self.name, "sha256": digest,
            "limit": self.limit,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One input with the answer that its expert should give."""

    label: str
    adapter: str
    source: str
    messages: tuple[Message, ...]
    """Without a system turn; the last one is the answer."""
    system: str | None
    image: Path | None
    image_sha256: str | None

    @property
    def text(self) -> str:
        """The input as one text, what likeness is measured on."""
        return "\n".join(message.content for message in self.messages[:-1])

    @property
    def key(self) -> int:
        """64 bits of input, image and label: the row's identity."""
        return fingerprint(self.text, self.image_sha256 or "", self.label)


def parse_source(text: str, labels: dict[str, str] | None = None) -> RoutingSource:
    """A source from `label=...,jsonl=...,image_root=...,limit=...`, as the command line writes it.

    Args:
        labels: adapter of each known label; the label itself where it is missing.

    Raises:
        DataError: an unknown or repeated key, no label, no file, or a limit that is no number.
    """
    expected = "label=NAME,jsonl=FILE[,image_root=FOLDER][,limit=N]"
    values: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key.strip() not in ("label", "jsonl", "image_root", "limit") or not value.strip():
            raise DataError(f'--source has the part "{part[:60]}"', expected, "write it as shown")
        if key.strip() in values:
            raise DataError(f"--source names {key.strip()} twice", expected, "name it once")
        values[key.strip()] = value.strip()
    if "label" not in values or "jsonl" not in values:
        raise DataError(f'--source "{text[:80]}" names no label or no file', expected, "write it as shown")
    limit = values.get("limit")
    if limit is not None and (not limit.isascii() or not limit.isdigit() or not int(limit[:12]) > 0):
        raise DataError(f'--source has the limit "{limit[:20]}"', "a whole number above 0", "correct it")
    root = values.get("image_root")
    return RoutingSource(
        values["label"], (labels or {}).get(values["label"], values["label"]),
        path=Path(values["jsonl"]).expanduser(),
        image_root=Path(root).expanduser() if root else None, limit=int(limit) if limit else None,
    )  # fmt: skip


def check_labels(sources: list[RoutingSource], needed: set[str]) -> None:
    """Every expert that is asked for has a source, and no two sources are the same data.

    Raises:
        DataError: an expert without data, an unknown one, or the same file twice for one label.
    """
    missing = sorted(needed - {source.label for source in sources})
    if missing:
        raise DataError(
            f"no data for {', '.join(missing)}", "a data set for every expert that is routed to",
            "name its data, or set its count to 0 in dataset.yaml",
        )  # fmt: skip
    unknown = sorted({source.label for source in sources} - needed)
    if unknown:
        raise DataError(
            f"data for {', '.join(unknown)}, which is no expert here", f"one of: {', '.join(sorted(needed))}",
            "correct the label, or add the expert",
        )  # fmt: skip
    seen: set[tuple[str, str]] = set()
    for source in sources:
        place = (source.label, str(source.path.resolve()) if source.path else source.name)
        if place in seen:
            raise DataError(
                f"{source.name} is named twice for {source.label}", "each file once", "name it once"
            )
        seen.add(place)


def source_rows(source: RoutingSource, count: int | None, seed: int) -> Iterator[SourceRow]:
    """Rows of a source, in order.

    Args:
        count: how many to generate, where the source is a generated task.

    Raises:
        DataError: as `readers.read_rows` and `formats.to_messages`; or an image that is not below the image
            folder, missing, or too large.
    """
    if source.path is None:
        yield from _generated(source, count or 0, seed)
        return
    limit = min(source.limit or MAX_SOURCE_ROWS, MAX_SOURCE_ROWS)
    row_format = _format(source.path, limit)
    hashes: dict[Path, str] = {}
    for row in read_rows(source.path, max_rows=limit):
        said = to_messages(row, row_format, source=str(source.path))
        if not isinstance(said, Conversation):
            raise row_error(source.path, row.number, "plain text", "a question with its answer")
        yield _row(source, row, said, hashes)


def _format(path: Path, limit: int) -> RowFormat:
    return detect_format(read_rows(path, max_rows=limit), str(path))


def _row(source: RoutingSource, row: Row, said: Conversation, hashes: dict[Path, str]) -> SourceRow:
    turns = said.messages
    last = max(index for index, turn in enumerate(turns) if turn.role == "assistant")
    system = turns[0].content if turns[0].role == "system" else None
    kept = tuple(turn for turn in turns[: last + 1] if turn.role != "system")
    image = _image(source, row)
    if image is not None and image not in hashes:
        hashes[image] = sha256_file(image)
    digest = hashes[image] if image is not None else None
    return SourceRow(source.label, source.adapter, source.name, kept, system, image, digest)


def _image(source: RoutingSource, row: Row) -> Path | None:
    value = row.value.get("image")
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > 4096:
        raise row_error(source.name, row.number, "image is not a path", 'for example "image": "shots/1.png"')
    assert source.path is not None, "a generated row has no image key"
    root = source.image_root or source.path.parent
    try:
        path = contained(root, value)
    except WorkspaceError as error:
        raise row_error(source.name, row.number, error.found, "an image below its image folder") from None
    if not path.is_file():
        raise DataFileMissingError(
            f"{source.name}, row {row.number}: no image {value[:200]} in {root}", "the image file",
            "check image_root, or remove the row",
        )  # fmt: skip
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise row_error(source.name, row.number, f"image {value[:200]} is over 64 MB", "a smaller picture")
    return path


def _generated(source: RoutingSource, count: int, seed: int) -> Iterator[SourceRow]:
    name = source.generator or ""
    if name not in GENERATORS:
        raise DataError(f'no generated task "{name[:60]}"', f"one of: {', '.join(GENERATORS)}", "name one")
    for row in generated_rows([name], list(source.levels), min(count, source.limit or count), seed):
        turns = (Message("user", row.prompt), Message("assistant", row.answer))
        yield SourceRow(source.label, source.adapter, source.name, turns, None, None, None)
