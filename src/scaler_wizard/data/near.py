"""Rows that say nearly the same, among any number of them, in bounded memory.

Signatures lie in a temporary file (248 bytes a row), band keys in a `RepeatFinder` (192 bytes a row on disk
at most); rows that share a band are compared by their signatures. Knows nothing of row formats.
"""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left
from types import TracebackType

import numpy as np

from scaler_wizard.data.fingerprints import SIMILAR, Signature, band_keys, signature, similarity
from scaler_wizard.data.repeats import HELD_KEYS, OnRepeat, RepeatFinder

_HEAD_BYTES = 16  # row number and fingerprint before each signature
_RECORD_BYTES = _HEAD_BYTES + 4 * len(signature(""))


class NearDuplicates:
    """Finds each row that is like an earlier one; exact repeats are somebody else's."""

    def __init__(self, on_repeat: OnRepeat, *, held_keys: int = HELD_KEYS) -> None:
        self._on_repeat = on_repeat
        self._file = tempfile.TemporaryFile(prefix="scaler-signatures-")  # noqa: SIM115 closed by __exit__
        self._finder = RepeatFinder(self._candidate, held_keys=held_keys)
        self._count = 0
        self._reported = bytearray()

    def __enter__(self) -> NearDuplicates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._finder.__exit__(kind, error, trace)

    def add(self, number: int, fingerprint: int, found: Signature) -> None:
        """One row, by its number, the fingerprint of its text and its signature."""
        self._file.write(number.to_bytes(8, "little") + fingerprint.to_bytes(8, "little") + found.tobytes())
        index, self._count = self._count, self._count + 1
        if index % 8 == 0:
            self._reported.append(0)
        for key in band_keys(found):
            self._finder.add(key, index)

    def finish(self) -> None:
        """Report what is left."""
        self._finder.finish()

    def _candidate(self, index: int, first: int) -> None:
        if index == first or self._reported[index // 8] >> (index % 8) & 1:
            return
        number, fingerprint, found = self._record(index)
        first_number, first_fingerprint, first_found = self._record(first)
        if fingerprint != first_fingerprint and similarity(found, first_found) >= SIMILAR:
            self._reported[index // 8] |= 1 << (index % 8)
            self._on_repeat(number, first_number)

    def _record(self, index: int) -> tuple[int, int, Signature]:
        self._file.flush()
        data = os.pread(self._file.fileno(), _RECORD_BYTES, index * _RECORD_BYTES)
        number, fingerprint = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8))
        return number, fingerprint, np.frombuffer(data, np.uint32, offset=_HEAD_BYTES)


class KnownTexts:
    """A bounded set of texts to recognise, exactly or nearly: the rows of a validation file."""

    def __init__(self, *, near: bool) -> None:
        self._near = near
        self._exact: set[int] = set()
        self._signatures: list[Signature] = []
        self._bands: list[tuple[int, int]] = []
        self._sorted = True

    def __len__(self) -> int:
        return len(self._exact)

    def add(self, fingerprint: int, text: str) -> None:
        """Learn one text; `text` is read only where near ones are to be recognised."""
        if fingerprint in self._exact:
            return
        self._exact.add(fingerprint)
        if self._near:
            found = signature(text)
            self._bands += [(key, len(self._signatures)) for key in band_keys(found)]
            self._signatures.append(found)
            self._sorted = False

    def holds(self, fingerprint: int) -> bool:
        """Whether exactly this text was added."""
        return fingerprint in self._exact

    def resembles(self, found: Signature) -> bool:
        """Whether a text of similarity 0.8 or more was added."""
        if not self._sorted:
            self._bands.sort()
            self._sorted = True
        for key in band_keys(found):
            at = bisect_left(self._bands, (key, 0))
            while at < len(self._bands) and self._bands[at][0] == key:
                if similarity(found, self._signatures[self._bands[at][1]]) >= SIMILAR:
                    return True
                at += 1
        return False
