"""What a vision tower made of pictures, kept on disk: each picture goes through the tower once in all.

    FOLDER/TOWER/SHA256.safetensors    features of one picture; TOWER is a hash of what they hang on

For every process and every attempt of a run that reads the same pictures with the same tower. A cache: a file
that is torn or was changed is made again, a full disk means that nothing is kept, and beyond its size the
least recently used go. Knows features as tensors; knows no model but by `tower_key`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from scaler_wizard.models.hashing import state_hash
from scaler_wizard.models.tensor_files import TensorFile, write_files

DEFAULT_DISK_BYTES: Final = 2 << 30
ROOM: Final = 0.9
"""Share of the size that is left when files had to go."""
SUFFIX: Final = ".safetensors"


def tower_key(tower: Any, settings: dict[str, Any]) -> str:
    """Hash of what features of a picture hang on: weights, format, kind of device, and the processor.

    Args:
        settings: of the image processor, JSON-ready.
    """
    meaning = {
        "processor": settings, "config": tower.config.to_dict(), "device": tower.device.type,
        "weights": state_hash(tower.state_dict()),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(meaning, sort_keys=True, default=str).encode()).hexdigest()[:32]


class FeatureFiles:
    """Tensors by the hash of the picture they were made of, below one folder.

    Args:
        write: False: what is there is used, and nothing is added; pictures of people who ask stay theirs.
    """

    def __init__(self, folder: Path, *, max_bytes: int = DEFAULT_DISK_BYTES, write: bool = True) -> None:
        self._folder, self._max_bytes, self._write = folder, max_bytes, write
        self._held: int | None = None

    def read(self, tower: str, sha256: str) -> dict[str, Tensor] | None:
        """The tensors that were kept; None where there are none, or not the ones that were written."""
        path = self._path(tower, sha256)
        try:
            with safe_open(path, framework="pt") as file:
                said = (file.metadata() or {}).get("content")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        except (OSError, SafetensorError, ValueError):
            return None
        if said != state_hash(tensors):
            return None
        if self._write:
            with contextlib.suppress(OSError):
                os.utime(path)
        return tensors

    def keep(self, tower: str, sha256: str, tensors: dict[str, Tensor]) -> None:
        """Write the tensors, in the place of a file that is not what it was; make room where it is full."""
        if not self._write:
            return
        path = self._path(tower, sha256)
        staging = path.with_name(f".{sha256}.{os.getpid()}.part")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_files({staging.name: TensorFile(tensors, {"content": state_hash(tensors)})}, staging.parent)
            # Not synced: what a power cut makes of it is found out by its hash.
            staging.rename(path)
            self._account(path.stat().st_size)
        except OSError:
            # A cache that cannot be written is a slower one.
            self._write = False
            with contextlib.suppress(OSError):
                staging.unlink(missing_ok=True)

    def _path(self, tower: str, sha256: str) -> Path:
        return self._folder / tower / f"{sha256}{SUFFIX}"

    def _account(self, added: int) -> None:
        if self._held is None:
            self._held = sum(size for _, size, _ in self._files())
        else:
            self._held += added
        if self._held <= self._max_bytes:
            return
        for _, size, path in sorted(self._files()):
            if self._held <= ROOM * self._max_bytes:
                return
            path.unlink(missing_ok=True)
            self._held -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(last use, bytes, path) of everything there, what killed writers left included."""
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):  # another process has made room
                found = path.stat()
                yield found.st_mtime, found.st_size, path
