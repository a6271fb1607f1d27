"""Read the header of a safetensors file: names, dtypes and shapes, never a tensor.

The format is an 8-byte little-endian length, that many bytes of JSON, then the data. A file is hostile
input: every number in the header is checked against the size of the file before it is believed.
Knows nothing of models. Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from scaler_wizard.errors import ModelError, ModelNotFoundError

MAX_HEADER_BYTES = 100_000_000
ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> tuple[TensorInfo, ...]:
    """Every tensor of one file, in the order of their bytes.

    Raises:
        ModelNotFoundError: the file cannot be opened.
        ModelError: the header is too large, not JSON, or does not agree with the file's size.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if length < 2 or length > MAX_HEADER_BYTES or 8 + length > size:
                raise _broken(path, f"its header claims {length:,} bytes in a file of {size:,}")
            text = file.read(length)
    except OSError as error:
        raise ModelNotFoundError(
            f"cannot read {path} ({error.strerror})", "a safetensors file", "download the model again"
        ) from None
    header = parse_json(text, path)
    header.pop("__metadata__", None)
    tensors = sorted(
        ((*_span(path, name, entry), name, entry) for name, entry in header.items()),
        key=lambda item: (item[0], item[1], item[2]),
    )
    position = 0
    infos = []
    for begin, end, name, entry in tensors:
        # The format allows no holes and no overlap: together with the exact lengths this means that no
        # offset can point outside the file or into another tensor.
        if begin != position:
            raise _broken(path, f'tensor "{name}" starts at byte {begin:,}, not {position:,}')
        position = end
        infos.append(TensorInfo(name, str(entry["dtype"]), tuple(entry["shape"]), end - begin))
    if position != size - 8 - length:
        raise _broken(path, f"its tensors need {position:,} bytes and {size - 8 - length:,} are there")
    return tuple(infos)


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys.

    Raises:
        ModelError: not UTF-8, not JSON, nested too deeply, a key twice, or not an object.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its JSON cannot be read ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(value, dict):
        raise _broken(path, f"its JSON is a {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _span(path: Path, name: str, entry: object) -> tuple[int, int]:
    """Begin and end of one tensor, after checking that dtype, shape and offsets agree."""
    if not isinstance(entry, dict):
        raise _broken(path, f'the entry of "{name[:80]}" is not an object')
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise _broken(path, f'tensor "{name[:80]}" has the unknown dtype {str(dtype)[:40]!r}')
    if not _naturals(shape) or len(shape) > 16 or not _naturals(offsets) or len(offsets) != 2:
        raise _broken(path, f'tensor "{name[:80]}" has an unreadable shape or offsets')
    begin, end = offsets
    if end - begin != (math.prod(shape) * ITEM_BITS[dtype] + 7) // 8:
        raise _broken(path, f'tensor "{name[:80]}" has {end - begin:,} bytes for shape {shape} of {dtype}')
    return begin, end


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)


def _broken(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path} is not a usable safetensors or JSON file: {what}"[:400],
        "a complete file as the model's author published it",
        "download the model again",
    )
