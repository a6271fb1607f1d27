"""Content hashes of weights, on disk and in memory: which bytes a run started from and ended with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from scaler_wizard.errors import ModelNotFoundError


def weights_sha256(path: Path) -> str:
    """SHA-256 (hex) over the safetensors files of a model directory, or of one file.

    Several files are hashed as lines "<sha256>  <name>" in name order, so that neither order nor a
    moved directory changes the result. Links are followed: the hub cache consists of them.

    Raises:
        ModelNotFoundError: no safetensors there.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelNotFoundError(f"no safetensors in {path}", "a model directory or a safetensors file")
    lines = []
    for file in files:
        with file.open("rb") as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {file.name}\n")
    if len(lines) == 1:
        return lines[0].split()[0]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of named tensors: names, formats, shapes and bytes, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
