"""What the first bytes of a file say it is, whatever it is called."""

from __future__ import annotations

import codecs
from pathlib import Path

from scaler_wizard.data.rows import open_file

TEXT_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".md"})
# UTF-32 before UTF-16, whose mark is its beginning.
_OTHER: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "UTF-32 text"),
    (codecs.BOM_UTF32_BE, "UTF-32 text"),
    (codecs.BOM_UTF16_LE, "UTF-16 text"),
    (codecs.BOM_UTF16_BE, "UTF-16 text"),
    (b"\x1f\x8b", "gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd: unpack it first"),
    (b"BZh", "bzip2: unpack it first"),
    (b"\xfd7zXZ", "xz: unpack it first"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"PAR1", "a Parquet file: call it .parquet"),
    (b"ARROW1", "an Arrow file: call it .arrow"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a picture"),
    (b"\x80\x04", "a pickle, which is never loaded"),
)


def other_file_type(path: Path) -> str:
    """What a file with the suffix of a text file really is; "" where it may well be text."""
    if path.suffix.lower() not in TEXT_SUFFIXES or not path.is_file():
        return ""
    head = _head(path)
    return next((name for mark, name in _OTHER if head.startswith(mark)), "")


def has_bom(path: Path) -> bool:
    """Whether a text file begins with the byte order mark of UTF-8."""
    return path.suffix.lower() in TEXT_SUFFIXES and path.is_file() and _head(path).startswith(codecs.BOM_UTF8)


def _head(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(16)


def file_bytes(path: Path) -> int:
    """Size of a file, or of the files directly in a directory; 0 where nothing is there."""
    if path.is_dir():
        return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    return path.stat().st_size if path.exists() else 0
