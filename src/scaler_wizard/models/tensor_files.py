"""Files that are still tensors: captured between two steps, written later, by this process or another.

`write_files` puts them into a directory. `write_image` lays them into a buffer byte for byte as they will lie
on the disk, so that a process without torch can write them out. Knows the safetensors format
(https://github.com/huggingface/safetensors#format); knows nothing of checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from scaler_wizard.store.checkpoint_image import ImagePart, place

# Names of the format, in the order in which the reference implementation sorts them: widest first.
_DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
_RANK = {dtype: rank for rank, dtype in enumerate(_DTYPES)}


@dataclass(frozen=True)
class TensorFile:
    """One safetensors file to be. The tensors are the live ones, on any device: no copy is made here."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


Files = Mapping[str, "bytes | TensorFile"]
"""Contents by name relative to a directory, with "/"."""


def write_files(files: Files, directory: Path) -> None:
    """Write the files into a directory that exists; OSError when the disk refuses."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
            continue
        # Not by safetensors itself: its error for a full disk carries no errno, and it copies everything.
        with path.open("wb") as file:
            file.write(_header(content))
            for _, value in _sorted(content):
                file.write(_flat(value).cpu().numpy().data)


@dataclass(frozen=True)
class Image:
    """Where everything goes in a buffer: the parts, and of every tensor file its header and tensors."""

    parts: tuple[ImagePart, ...]
    size: int
    _plain: tuple[tuple[int, bytes], ...]
    _tensors: tuple[tuple[int, Tensor], ...]

    def write(self, buffer: memoryview) -> None:
        """Copy everything into a writable buffer of at least `size` bytes, from whatever device it is on."""
        for offset, data in self._plain:
            buffer[offset : offset + len(data)] = data
        target = torch.frombuffer(buffer, dtype=torch.uint8)
        for offset, tensor in self._tensors:
            flat = _flat(tensor)
            target[offset : offset + flat.numel()].copy_(flat)


def image_of(files: Files) -> Image:
    """Lay the files out; nothing is copied yet."""
    sizes: dict[str, int] = {}
    headers: dict[str, bytes] = {}
    for name, content in files.items():
        if isinstance(content, bytes):
            sizes[name] = len(content)
        else:
            headers[name] = _header(content)
            sizes[name] = len(headers[name]) + sum(_bytes_of(value) for value in content.tensors.values())
    parts, size = place(sizes)
    plain: list[tuple[int, bytes]] = []
    tensors: list[tuple[int, Tensor]] = []
    for part in parts:
        content = files[part.name]
        if isinstance(content, bytes):
            plain.append((part.offset, content))
            continue
        plain.append((part.offset, headers[part.name]))
        offset = part.offset + len(headers[part.name])
        for _, value in _sorted(content):
            if value.numel():
                tensors.append((offset, value))
            offset += _bytes_of(value)
    return Image(parts, size, tuple(plain), tuple(tensors))


def _header(content: TensorFile) -> bytes:
    """Length and JSON header, padded to 8 bytes: what safetensors itself writes for these tensors."""
    entries: dict[str, object] = {}
    if content.metadata:
        entries["__metadata__"] = dict(content.metadata)
    offset = 0
    for name, value in _sorted(content):
        end = offset + _bytes_of(value)
        entries[name] = {
            "dtype": _DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _sorted(content: TensorFile) -> list[tuple[str, Tensor]]:
    return sorted(content.tensors.items(), key=lambda item: (_RANK[item[1].dtype], item[0]))


def _flat(value: Tensor) -> Tensor:
    """The tensor's bytes [bytes], uint8, on its own device."""
    return value.detach().reshape(-1).view(torch.uint8)


def _bytes_of(value: Tensor) -> int:
    return value.numel() * value.element_size()
