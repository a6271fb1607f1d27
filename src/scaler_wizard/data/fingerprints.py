"""What a row says, as numbers: equal for equal rows, alike for rows that are alike.

`fingerprint` is a hash of the text; `Signature` a MinHash (Broder 1997) of its shingles of eight bytes, whose
share of equal entries estimates the Jaccard similarity of two texts. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

# Sixty hashes in twelve bands of five: two texts of similarity 0.8 share a band with probability 0.99, of
# 0.9 with 0.9999, of 0.3 with 0.03.
BANDS: Final = 12
BAND_ROWS: Final = 5
SHINGLE_BYTES: Final = 8
SIMILAR: Final = 0.8
COLLAPSED_CHARACTERS: Final = 65_536
_CHUNK = 8192

Signature: TypeAlias = npt.NDArray[np.uint32]
"""[BANDS * BAND_ROWS] minima."""


def collapse(text: str) -> str:
    """`text` with every run of white space as one space; beyond 65,536 characters as it is.

    Splitting takes 50 bytes a word, which 8 MB of one-letter words must not get.
    """
    return " ".join(text.split()) if len(text) <= COLLAPSED_CHARACTERS else text


def fingerprint(*texts: str) -> int:
    """64 bits of BLAKE2b of texts, white space collapsed."""
    hasher = hashlib.blake2b(digest_size=8)
    for text in texts:
        data = collapse(text).encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(hasher.digest(), "little")


def _constants() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    # RandomState, whose streams are frozen (NEP 19): equal files give equal reports in every version.
    draws = np.random.RandomState(20).randint(0, 1 << 32, size=(2, BANDS * BAND_ROWS, 1), dtype=np.uint32)
    return draws[0] | np.uint32(1), draws[1]


_FACTORS, _OFFSETS = _constants()


def signature(text: str) -> Signature:
    """MinHash of the 8-byte shingles of `text`, white space collapsed and case folded.

    The k-th hash is a_k * x + b_k mod 2^32 with a_k odd, a permutation, over shingles mixed by the finaliser
    of SplitMix64 and cut to 32 bits.
    """
    data = collapse(text).casefold().encode("utf-8", "surrogatepass").ljust(SHINGLE_BYTES)
    minima = np.full(BANDS * BAND_ROWS, np.iinfo(np.uint32).max, np.uint32)
    view = np.frombuffer(data, np.uint8)
    for start in range(0, len(data) - SHINGLE_BYTES + 1, _CHUNK):
        piece = view[start : start + _CHUNK + SHINGLE_BYTES - 1]
        windows = np.lib.stride_tricks.sliding_window_view(piece, SHINGLE_BYTES)
        shingles = np.ascontiguousarray(windows).view(np.uint64)[:, 0]
        mixed = (_mix(shingles) >> np.uint64(32)).astype(np.uint32)
        minima = np.minimum(minima, (mixed * _FACTORS + _OFFSETS).min(axis=1))
    return minima


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def band_keys(found: Signature) -> list[int]:
    """One 64-bit key for each band; texts that share one are candidates."""
    bands = found.reshape(BANDS, BAND_ROWS)
    return [
        int.from_bytes(hashlib.blake2b(band.tobytes(), digest_size=8, salt=bytes([at])).digest(), "little")
        for at, band in enumerate(bands)
    ]


def similarity(first: Signature, second: Signature) -> float:
    """Estimated Jaccard similarity; its standard error is at most 0.065."""
    return float((first == second).mean())
