"""What a checkpoint is on disk: a directory of files and a manifest of their hashes.

Reads, writes and checks one checkpoint directory. Which checkpoint is current is `checkpoints`' matter.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scaler_wizard.errors import CheckpointError
from scaler_wizard.store.durable import json_text, sha256_file

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
_MAX_MANIFEST_BYTES = 16 << 20
Kind = Literal["phase", "step"]


class DamagedCheckpoint(CheckpointError):  # noqa: N818 (a finding about the checkpoint, handled by the store)
    """The bytes are wrong, as opposed to unreadable for now (permissions, too many open files)."""


@dataclass(frozen=True)
class FileHash:
    """Content hash (hex SHA-256) and size of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """One committed checkpoint, as its manifest describes it."""

    name: str
    path: Path
    phase: str
    kind: Kind
    step: int
    """Optimiser steps done in the phase."""
    created: float
    """Unix time in seconds."""
    parent: str | None
    """Name of the checkpoint that this one was trained from."""
    files: Mapping[str, FileHash]
    """By name relative to `path`, with "/"; the manifest itself is not in it."""
    metrics: Mapping[str, Any]
    extra: Mapping[str, Any]
    digest: str
    """SHA-256 of the manifest, which holds those of all files: one hash for the whole checkpoint."""

    @property
    def sequence(self) -> int:
        """The number in the name; later commits have higher ones."""
        return sequence_of(self.name)


def sequence_of(name: str) -> int:
    """The number at the end of a checkpoint's name, 0 when there is none."""
    tail = name.rpartition("-")[2]
    return int(tail) if tail.isascii() and tail.isdigit() else 0


def phase_of(name: str) -> str:
    """The phase in a checkpoint's name: "P3.1" of "P3.1-0007"."""
    return name.rpartition("-")[0]


def regular_files(directory: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield (relative name, bytes) of every file below `directory`, sorted.

    Raises:
        DamagedCheckpoint: a symbolic link, device, socket or pipe.
    """
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            yield from regular_files(directory / entry.name, f"{prefix}{entry.name}/")
        elif stat.S_ISREG(status.st_mode):
            yield prefix + entry.name, status.st_size
        else:
            raise DamagedCheckpoint(
                f"{directory / entry.name} is a link or a special file", "plain files only"
            )


def hash_files(directory: Path) -> dict[str, FileHash]:
    """Hash every file below `directory` but the manifest; streams, 1 MiB at a time."""
    return {
        name: FileHash(sha256_file(directory / name), size)
        for name, size in regular_files(directory)
        if name != MANIFEST
    }


def manifest_bytes(
    phase: str,
    kind: Kind,
    step: int,
    created: float,
    parent: str | None,
    files: Mapping[str, FileHash],
    metrics: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> bytes:
    """The manifest as JSON, with the hash of its own other fields as `digest`."""
    body = {
        "schema": MANIFEST_SCHEMA, "phase": phase, "kind": kind, "step": step, "created": created,
        "parent": parent, "metrics": dict(metrics), "extra": dict(extra),
        "files": {name: {"sha256": f.sha256, "bytes": f.bytes} for name, f in files.items()},
    }  # fmt: skip
    return json_text(sealed(body)).encode()


def read_manifest(directory: Path) -> Checkpoint:
    """Read a checkpoint's manifest and check its own hash; its files are not looked at.

    Raises:
        CheckpointError: missing, damaged, or of a newer format.
    """
    try:
        with (directory / MANIFEST).open("rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
        value = json.loads(data)
        if not isinstance(value, dict) or not is_sealed(value):
            raise ValueError("its own hash does not match")
        if value["schema"] != MANIFEST_SCHEMA:
            raise ValueError(f"format {value['schema']}, this program reads {MANIFEST_SCHEMA}")
        return Checkpoint(
            name=directory.name, path=directory, phase=str(value["phase"]), kind=value["kind"],
            step=int(value["step"]), created=float(value["created"]), parent=value["parent"],
            files={name: FileHash(str(f["sha256"]), int(f["bytes"])) for name, f in value["files"].items()},
            metrics=dict(value["metrics"]), extra=dict(value["extra"]), digest=str(value["digest"]),
        )  # fmt: skip
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EIO):
            raise _unreadable(directory, error) from error
        raise _damaged(directory, f"{MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(directory, f"{MANIFEST} is damaged ({error})") from None


def verify_directory(directory: Path) -> Checkpoint:
    """Check every byte of a checkpoint against its manifest and return it.

    Raises:
        DamagedCheckpoint: a file is missing, extra, or changed.
        CheckpointError: a file cannot be read for another reason.
    """
    checkpoint = read_manifest(directory)
    try:
        difference = first_difference(directory, checkpoint.files)
    except OSError as error:
        if error.errno != errno.EIO:
            raise _unreadable(directory, error) from error
        raise _damaged(directory, f"the disk cannot read it ({error.strerror})") from error
    if difference is not None:
        raise _damaged(directory, difference)
    return checkpoint


def first_difference(directory: Path, files: Mapping[str, FileHash]) -> str | None:
    """What of `directory` (its manifest aside) is not as `files` say, in words; None when every byte is.

    Raises:
        DamagedCheckpoint: a link or special file.
        OSError: a file cannot be read.
    """
    sizes = {name: size for name, size in regular_files(directory) if name != MANIFEST}
    for name in sorted(sizes.keys() | files.keys()):
        expected = files.get(name)
        if expected is None:
            return f"{name} is not in the manifest"
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != expected.bytes:
            return f"{name} has {sizes[name]:,} bytes instead of {expected.bytes:,}"
        if sha256_file(directory / name) != expected.sha256:
            return f"the content of {name} has changed"
    return None


def _damaged(directory: Path, why: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"checkpoint {directory.name} is damaged: {why}",
        "the bytes of its manifest",
        "use an earlier checkpoint",
    )


def _unreadable(directory: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {directory.name} cannot be read ({error.strerror})", "", "check permissions and limits"
    )


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """`body` with the SHA-256 of its canonical JSON added as "digest"."""
    plain: dict[str, Any] = json.loads(json_text(body))
    return {**plain, "digest": _digest(plain)}


def is_sealed(value: Mapping[str, Any]) -> bool:
    """Whether a record made by `sealed` is unchanged."""
    return value.get("digest") == _digest({key: item for key, item in value.items() if key != "digest"})


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
