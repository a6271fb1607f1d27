"""What a stage generated, kept or not: JSON lines with a manifest that says what they are and where from.

Nothing that was generated is thrown away: a rejected row keeps its reason. A file is written whole or not at
all and depends on its rows only, so that a run that was killed writes the same bytes as one that was not.
Read back it is hostile: somebody may have edited it. Knows rows and files; no model. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.data.json_rows import read_jsonl
from scaler_wizard.data.jsonl_writer import JsonlWriter
from scaler_wizard.data.rows import BadRows
from scaler_wizard.errors import DataError, RunError
from scaler_wizard.store.durable import json_text, sha256_file, write_atomic

FORMAT = 1
MAX_MANIFEST_BYTES = 4 << 20
NO_REASON = "no reason given"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a record file holds. Lies beside it as `NAME.manifest.json`."""

    file: str
    """Name of the file, without its folder."""
    sha256: str
    rows: int
    kept: int
    rejected: Mapping[str, int]
    """Rows by the reason they were rejected for."""
    about: Mapping[str, Any]
    """Stage, seed, weights of the generating model, prompts, settings: what the rows depend on."""
    format: int = FORMAT

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def manifest_path(path: Path) -> Path:
    """Where the manifest of a record file lies."""
    return path.with_name(f"{path.stem}.manifest.json")


def write_records(path: Path, rows: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> Manifest:
    """Write every row and the manifest; equal rows give equal bytes. An older file of the name is replaced.

    Args:
        rows: each with `kept` (bool), `reason` where it was rejected, and whatever the stage knows of it.

    Raises:
        DataError: the file cannot be written. Nothing of it is then visible under its name.
    """
    counts: Counter[str] = Counter()
    n = kept = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with JsonlWriter(path, force=True) as writer:
            for row in rows:
                writer.write(row)
                n += 1
                kept += row["kept"] is True
                if row["kept"] is not True:
                    counts[str(row.get("reason") or NO_REASON)] += 1
        rejected = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        manifest = Manifest(path.name, sha256_file(path), n, kept, rejected, about)
        write_atomic(manifest_path(path), json_text(manifest.as_dict()) + "\n")
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror})", "a disk with room",
            "free some space and resume the run",
        ) from error  # fmt: skip
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest of a record file.

    Raises:
        RunError: missing, damaged, or of another format.
    """
    place = manifest_path(path)
    try:
        with place.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {MAX_MANIFEST_BYTES:,} bytes")
        value = json.loads(data)
        counts = {str(reason): _whole(count) for reason, count in value["rejected"].items()}
        about = value["about"]
        if value["format"] != FORMAT or value["file"] != path.name or not isinstance(about, dict):
            raise ValueError("it describes another file, or another format")
        return Manifest(
            path.name, str(value["sha256"]), _whole(value["rows"]), _whole(value["kept"]), counts, about
        )
    except OSError as error:
        raise _unusable(place, error.strerror or "not readable") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unusable(place, str(error)) from None


def read_records(path: Path, sha256: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a record file, after its bytes were compared with a hash.

    Args:
        sha256: what the caller remembers; the manifest's when None.

    Raises:
        RunError: missing, not the file that was written, or a row that is none.
    """
    expected = read_manifest(path).sha256 if sha256 is None else sha256
    try:
        found = sha256_file(path)
    except OSError as error:
        raise _unusable(path, error.strerror or "not readable") from None
    if found != expected:
        raise _unusable(path, f"its SHA-256 is {found[:16]}..., not {expected[:16]}...")
    try:
        for row in read_jsonl(path, BadRows()):
            if not isinstance(row.value.get("kept"), bool):
                raise _unusable(path, f"row {row.number} does not say whether it was kept")
            yield row.value
    except DataError as error:
        raise _unusable(path, error.found) from None


def records_digest(folder: Path) -> str:
    """One SHA-256 over every record file below a folder, names included: equal runs have equal ones."""
    hasher = hashlib.sha256()
    for path in sorted(folder.rglob("*.jsonl")):
        hasher.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return hasher.hexdigest()


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is not a count")
    return value


def _unusable(path: Path, why: str) -> RunError:
    return RunError(
        f"{path} cannot be used: {why}",
        "the file as its stage wrote it",
        "roll back to before the stage it belongs to; the stage then makes it again",
    )
