"""A routing set on disk: the experts' data sets merged, split without leaks, hashed, and read back checked.

    datasets/routing_20260131_120000/{train,val,test}.jsonl   {id, image, conversations, metadata}
    datasets/routing_20260131_120000/experts.jsonl            what experts learn: rows of no measured group
    datasets/routing_20260131_120000/images/                  each picture once, by content hash
    datasets/routing_20260131_120000/metadata.json            counts, sources, hashes; sealed by its own hash

The folder appears whole or not at all. Torch-free; knows nothing of routers.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.data.formats import Conversation, Message, to_messages
from scaler_wizard.data.readers import read_rows
from scaler_wizard.data.routing_groups import group_rows
from scaler_wizard.data.routing_sources import RoutingSource, SourceRow, check_labels, source_rows
from scaler_wizard.data.routing_split import SPLITS, Split, SplitSizes, split_groups
from scaler_wizard.data.rows import Row, row_error
from scaler_wizard.errors import DataError, WorkspaceError
from scaler_wizard.specs.experts import RoutingSection
from scaler_wizard.store.checkpoint_files import FileHash, first_difference, hash_files, is_sealed, sealed
from scaler_wizard.store.durable import OS, FileSystem, fsync_tree, json_text
from scaler_wizard.store.names import contained, safe_name

METADATA = "metadata.json"
LESSONS = "experts"
FORMAT = 1
MAX_METADATA_BYTES = 16 << 20
EXTRA_GENERATED = 1.3
"""Generated rows are drawn in excess: some are too alike to be used."""


@dataclass(frozen=True, slots=True)
class RoutingRow:
    """One input, the expert that should answer it, and the answer."""

    id: str
    label: str
    adapter: str
    source_dataset: str
    messages: tuple[Message, ...]
    """System turn (where there is one), then the input's turns."""
    answer: str
    image: Path | None

    @property
    def prompt(self) -> str:
        """The last thing that was asked."""
        return self.messages[-1].content


@dataclass(frozen=True)
class RoutingSet:
    """A routing set that was read and checked."""

    path: Path
    train: tuple[RoutingRow, ...]
    val: tuple[RoutingRow, ...]
    test: tuple[RoutingRow, ...]
    lessons: tuple[RoutingRow, ...]
    """What experts may be trained on: the train rows, and rows beyond the wanted numbers; none is of a group
    that stands in val or test."""
    metadata: Mapping[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all experts, in the order of the job."""
        return tuple(self.metadata["labels"])

    @property
    def digest(self) -> str:
        """One hash of everything in it."""
        return str(self.metadata["digest"])

    def split(self, name: Split) -> tuple[RoutingRow, ...]:
        """The rows of one split."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


@dataclass(frozen=True)
class Merged:
    """What a routing set will be, before anything is written."""

    rows: tuple[SourceRow, ...]
    splits: tuple[Split | None, ...]
    groups: tuple[int, ...]
    labels: tuple[str, ...]
    sources: tuple[dict[str, Any], ...]

    def chosen(self, name: str) -> list[SourceRow]:
        """The rows of a split, or of `LESSONS`."""
        measured = {g for g, split in zip(self.groups, self.splits, strict=True) if split in ("val", "test")}
        return [
            row
            for row, split, group in zip(self.rows, self.splits, self.groups, strict=True)
            if (split == name if name != LESSONS else group not in measured)
        ]

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows by label and split."""
        found = Counter(
            (row.label, split) for row, split in zip(self.rows, self.splits, strict=True) if split
        )
        return {label: {split: found[label, split] for split in SPLITS} for label in self.labels}

    @property
    def ambiguous(self) -> int:
        """Groups that hold rows of several experts: no router can tell these inputs apart by much."""
        owners: dict[int, set[str]] = {}
        for row, group in zip(self.rows, self.groups, strict=True):
            owners.setdefault(group, set()).add(row.label)
        return sum(len(labels) > 1 for labels in owners.values())


def merge_sources(
    sources: Sequence[RoutingSource], section: RoutingSection, labels: Sequence[str], lesson_rows: int = 0
) -> Merged:
    """Read every source, group what is alike, split by group.

    Args:
        labels: every expert of the job; those that the section sets to 0 are left out.
        lesson_rows: rows that an expert is to learn from, where they can be generated.

    Raises:
        DataError: an expert without data, data without an expert, a count for no expert, hostile rows, or too
            few different rows.
    """
    unknown = sorted(set(section.experts) - set(labels))
    if unknown:
        raise DataError(
            f"dataset.experts counts rows of {', '.join(unknown)}", f"one of: {', '.join(labels)}",
            "correct the name, or add the expert",
        )  # fmt: skip
    enabled = tuple(label for label in labels if section.experts.get(label) != 0)
    if len(enabled) < 2:
        raise DataError(
            f"{len(enabled)} expert is routed to", "at least two", "add an expert, or raise its count above 0"
        )
    used = [source for source in sources if source.label not in labels or source.label in enabled]
    check_labels(used, set(enabled))
    sizes = {
        label: SplitSizes(
            section.experts.get(label, section.rows),
            section.test_rows,
            section.val / (section.train + section.val),
        )
        for label in enabled
    }
    rows = [
        row
        for source in used
        for row in source_rows(source, _to_generate(sizes[source.label], lesson_rows), section.seed)
    ]
    groups = group_rows(
        [row.text for row in rows], [row.image_sha256 for row in rows], [row.source for row in rows]
    )
    splits = split_groups(groups, [row.label for row in rows], [row.key for row in rows], sizes, section.seed)
    records = tuple(source.record() for source in used)
    return Merged(tuple(rows), tuple(splits), tuple(groups), enabled, records)


def _to_generate(size: SplitSizes, lesson_rows: int) -> int:
    return round(EXTRA_GENERATED * (max(size.rows or 1000, lesson_rows) + size.test))


def write_routing(
    merged: Merged, section: RoutingSection, folder: Path, created: float, fs: FileSystem = OS
) -> RoutingSet:
    """Write a routing set; the one that is there already, where it is whole (a stage that is repeated).

    Raises:
        DataError: the disk refuses.
    """
    if (folder / METADATA).is_file():
        return read_routing(folder)
    staging = folder.with_name(f".{folder.name}.part")
    try:
        fs.remove_tree(staging)
        staging.mkdir(parents=True, mode=0o700)
        _write_rows(merged, section, staging, fs)
        files = {name: vars(file) for name, file in hash_files(staging).items() if name != METADATA}
        metadata = {
            "format": FORMAT, "name": folder.name, "created": created, "seed": section.seed,
            "labels": list(merged.labels), "counts": merged.counts(), "groups": len(set(merged.groups)),
            "ambiguous_groups": merged.ambiguous, "left_out": merged.splits.count(None),
            "sources": list(merged.sources), "settings": section.model_dump(mode="json"), "files": files,
        }  # fmt: skip
        fs.write(staging / METADATA, json_text(sealed(metadata)).encode())
        fsync_tree(staging, fs=fs)
        fs.rename(staging, folder)
        fs.fsync(folder.parent)
    except OSError as error:
        raise DataError(
            f"the routing set {folder} cannot be written ({error.strerror})", "a working disk with space",
            "free some space; nothing was left half written",
        ) from error  # fmt: skip
    return read_routing(folder)


def _write_rows(merged: Merged, section: RoutingSection, staging: Path, fs: FileSystem) -> None:
    if section.image_format == "copy" and any(row.image for row in merged.rows):
        (staging / "images").mkdir(mode=0o700)
    for name in (*SPLITS, LESSONS):
        lines = (
            json.dumps(_as_dict(row, section, staging), ensure_ascii=False) for row in merged.chosen(name)
        )
        fs.write(staging / f"{name}.jsonl", "".join(f"{line}\n" for line in lines).encode())


def _as_dict(row: SourceRow, section: RoutingSection, staging: Path) -> dict[str, Any]:
    system = section.system_prompt or row.system
    turns = [{"from": "system", "value": system}] if system else []
    names = {"user": "human", "assistant": "gpt"}
    turns += [{"from": names.get(turn.role, turn.role), "value": turn.content} for turn in row.messages]
    image = None
    if row.image is not None:
        image = str(row.image)
        if section.image_format == "copy":
            image = f"images/{row.image_sha256}{row.image.suffix.lower()[:8]}"
            if not (staging / image).exists():
                shutil.copyfile(row.image, staging / image)
    return {
        "id": f"{row.key:016x}", "image": image, "conversations": turns,
        "metadata": {"adapter": row.adapter, "label": row.label, "source_dataset": row.source},
    }  # fmt: skip


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json, its own hash checked.

    Raises:
        DataError: missing, changed, or of another format.
    """
    try:
        with (folder / METADATA).open("rb") as file:
            value = json.loads(file.read(MAX_METADATA_BYTES + 1))
        if not isinstance(value, dict) or not is_sealed(value) or value["format"] != FORMAT:
            raise ValueError("its own hash or format does not match")
        if not isinstance(value["labels"], list) or len(set(value["labels"])) != len(value["labels"]):
            raise ValueError("labels are no list of different names")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(
            f"{folder / METADATA} cannot be used ({why})", "a set that `scaler experts generate` wrote",
            "generate it again",
        ) from None  # fmt: skip
    return value


def read_routing(folder: Path) -> RoutingSet:
    """Read a routing set: every byte hashed, every row checked.

    Raises:
        DataError: changed, damaged, or rows that are none.
    """
    metadata = read_metadata(folder)
    difference = first_difference(folder, _files(metadata) | _own(folder))
    if difference is not None:
        raise DataError(
            f"the routing set {folder} is not as it was written: {difference}", "the bytes of its metadata",
            "generate it again",
        )  # fmt: skip
    labels = set(metadata["labels"])
    train, val, test, lessons = (
        tuple(_read(folder / f"{name}.jsonl", labels)) for name in (*SPLITS, LESSONS)
    )
    return RoutingSet(folder, train, val, test, lessons, metadata)


def _files(metadata: Mapping[str, Any]) -> dict[str, FileHash]:
    return {str(name): FileHash(str(f["sha256"]), int(f["bytes"])) for name, f in metadata["files"].items()}


def _own(folder: Path) -> dict[str, FileHash]:
    """metadata.json hashes itself."""
    return {METADATA: hash_files(folder)[METADATA]}


def _read(path: Path, labels: set[str]) -> list[RoutingRow]:
    return [_parse(row, path, labels) for row in read_rows(path)] if path.stat().st_size else []


def _parse(row: Row, path: Path, labels: set[str]) -> RoutingRow:
    said = to_messages(row, "sharegpt", source=str(path))
    about = row.value.get("metadata")
    identity = row.value.get("id")
    if not isinstance(about, dict) or not isinstance(identity, str) or about.get("label") not in labels:
        raise row_error(path, row.number, "no id, or metadata without a known label", "a row as generated")
    assert isinstance(said, Conversation)
    if said.messages[-1].role != "assistant" or len(said.messages) < 2:
        raise row_error(path, row.number, "its last turn is not the answer", "a row as generated")
    image = row.value.get("image")
    place: Path | None = None
    if image is not None:
        try:
            place = Path(image) if Path(image).is_absolute() else contained(path.parent, str(image))
        except (WorkspaceError, TypeError, ValueError):
            raise row_error(path, row.number, "an image outside of the set", "a row as generated") from None
    return RoutingRow(
        identity, str(about["label"]), str(about.get("adapter")), str(about.get("source_dataset")),
        said.messages[:-1], said.messages[-1].content, place,
    )  # fmt: skip


def routing_folder(workspace: Path, stamp: str) -> Path:
    """datasets/routing_STAMP of a workspace; STAMP is YYYYMMDD_HHMMSS."""
    return workspace / "datasets" / safe_name(f"routing_{stamp}", "routing set")
