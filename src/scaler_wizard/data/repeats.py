"""Equal keys among any number of them, in bounded memory: sorted in memory, spilled to disk beyond that.

The keys of a 10 GB file do not fit in memory as Python objects. Here 256 Ki of them are held at a time; when
they are full their repeats are reported and the rest goes to 256 partitions on disk by the key's first byte,
16 bytes each, of which one at a time is read back (Grace hash partitioning). Knows nothing of rows.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

HELD_KEYS = 1 << 18

OnRepeat = Callable[[int, int], None]
"""Told (number, number of the first with the same key), each repeat once."""


class RepeatFinder:
    """Use as a context manager around `add`, then call `finish` once; the temporary files end with it."""

    def __init__(self, on_repeat: OnRepeat, *, held_keys: int = HELD_KEYS) -> None:
        self._on_repeat, self._held = on_repeat, held_keys
        self._keys, self._numbers = array("Q"), array("Q")
        self._disk: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> RepeatFinder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._disk is not None:
            self._disk.cleanup()

    def add(self, key: int, number: int) -> None:
        """One key of 64 bits; numbers must not fall."""
        self._keys.append(key)
        self._numbers.append(number)
        if len(self._keys) >= self._held:
            self._spill()

    def finish(self) -> None:
        """Report what is left."""
        if self._disk is None:
            self._firsts()
            return
        self._spill()
        for path in sorted(Path(self._disk.name).iterdir()):
            pairs = np.fromfile(path, np.uint64).reshape(-1, 2)
            self._report(pairs[:, 0], pairs[:, 1])

    def _firsts(self) -> npt.NDArray[np.uint64]:
        """Empty the memory, report its repeats; (key, number) of each different key [n, 2], by key."""
        keys, numbers = np.array(self._keys, np.uint64), np.array(self._numbers, np.uint64)
        self._keys, self._numbers = array("Q"), array("Q")
        return self._report(keys, numbers)

    def _report(
        self, keys: npt.NDArray[np.uint64], numbers: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.uint64]:
        # Stable, so that the first of a group is the one that came first.
        order = np.argsort(keys, kind="stable")
        keys, numbers = keys[order], numbers[order]
        is_first = np.ones(len(keys), np.bool_)
        is_first[1:] = keys[1:] != keys[:-1]
        starts = np.flatnonzero(is_first)
        repeats = np.flatnonzero(~is_first)
        firsts = numbers[starts[np.searchsorted(starts, repeats, side="right") - 1]]
        for number, first in zip(numbers[repeats].tolist(), firsts.tolist(), strict=True):
            self._on_repeat(number, first)
        return np.stack([keys[starts], numbers[starts]], axis=1)

    def _spill(self) -> None:
        if self._disk is None:
            self._disk = tempfile.TemporaryDirectory(prefix="scaler-repeats-")
        pairs = self._firsts()
        bounds = np.searchsorted(pairs[:, 0], np.arange(1, 256, dtype=np.uint64) << np.uint64(56))
        for index, part in enumerate(np.split(pairs, bounds)):
            if len(part):
                with (Path(self._disk.name) / f"{index:03d}").open("ab") as file:
                    file.write(part.tobytes())
