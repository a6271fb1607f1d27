"""Two versions of a lineage side by side: metrics in words, settings, and how far the weights moved by layer.

Reads manifests and safetensors files with numpy, one tensor at a time; loads no model. The change of a LoRA
layer is that of its product, s2 B2 A2 - s1 B1 A1, whose Frobenius norm needs only matrices of the rank's
size: ||B A||^2 = trace((B^T B)(A A^T)) with B = [s2 B2, -s1 B1] and A = [A2; A1] stacked.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaler_wizard.errors import ModelError
from scaler_wizard.planning.safetensors_header import read_header
from scaler_wizard.store.config import Difference, differences
from scaler_wizard.store.snapshots import Snapshot, changelog
from scaler_wizard.store.version_files import WEIGHTS, VersionManifest, read_manifest

Matrix = NDArray[np.float32]
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
_OUTSIDE = "outside the layers"
_MAX_CONFIG_BYTES = 1 << 20
# Parts of a version's metrics that compare it with the version before or tell how its run went.
_OF_THE_RUN = {
    "before",
    "n",
    "gained",
    "lost",
    "p_value",
    "earlier_loss_change",
    "tokens_per_second",
    "seconds",
}
_PLAIN = {
    "gap.train_loss": "training loss",
    "gap.held_out_loss": "held-out loss",
    "gap.value": "gap",
    "rows.trained": "rows learned",
    "rows.held_out": "rows held out",
    "rows.replayed": "rows replayed",
    "rows.replayed_files": "files replayed",
    "rows.set_aside": "lines set aside",
    "rows.tokens": "tokens",
}


@dataclass(frozen=True)
class LayerChange:
    """How far the weights of one layer moved."""

    layer: str
    norm: float
    """Frobenius norm of the difference."""
    before: float
    """Frobenius norm of what was there (an adapter's own product, not the base's weights)."""


@dataclass(frozen=True)
class VersionDifference:
    """What changed from one version to another."""

    first: str
    second: str
    words: str
    files: tuple[str, ...]
    """Names of files that differ."""
    settings: tuple[Difference, ...]
    """Of the jobs' learning sections."""
    layers: tuple[LayerChange, ...]
    """In order; empty where the two cannot be compared, see `note`."""
    note: str = ""


def compare(
    first: Path, second: Path, jobs: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
) -> VersionDifference:
    """Compare two version folders.

    Args:
        jobs: learning sections of the runs that made them, where known.

    Raises:
        ModelError: a manifest or a weights file is damaged.
    """
    old, new = read_manifest(first), read_manifest(second)
    names = sorted(old.files.keys() | new.files.keys())
    changed = [name for name in names if old.files.get(name) != new.files.get(name)]
    layers: tuple[LayerChange, ...] = ()
    note = _incomparable(old, new)
    if not note:
        pairs = (_adapter_changes if new.kind == "adapter" else _full_changes)(
            first / WEIGHTS[new.kind], second / WEIGHTS[new.kind]
        )
        layers = _by_layer(pairs)
    return VersionDifference(
        first.name, second.name, _words(old, new), tuple(changed), tuple(differences(*jobs)), layers, note
    )


def _incomparable(old: VersionManifest, new: VersionManifest) -> str:
    if old.kind != new.kind:
        return "one is an adapter and the other a whole model: their weights are not compared"
    if old.base != new.base:
        return "the adapters belong on different bases: their weights are not compared"
    return ""


def _words(old: VersionManifest, new: VersionManifest) -> str:
    before, after = _numbers(old.metrics), _numbers(new.metrics)
    return changelog(Snapshot(old.run, old.created, before), Snapshot(new.run, new.created, after))


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in nested metrics that tell of the version itself, in a person's words.

    Intervals, texts, and what tells of its run (before, speed, tests) are left out.
    """
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if name in _OF_THE_RUN:
            continue
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[_plain(f"{prefix}{name}")] = float(value)
    return found


def _plain(path: str) -> str:
    group = re.fullmatch(r"accuracy\.(.+?)(?:\.after\.value)?", path)
    return f"accuracy on {group[1]}" if group else _PLAIN.get(path, path.replace(".", " "))


def _full_changes(first: Path, second: Path) -> Iterator[tuple[str, float, float]]:
    """(tensor, norm of the difference, norm before) squared, for tensors of equal shape in both."""
    old, new = _tensors(first), _tensors(second)
    for name in sorted(old.keys() & new.keys()):
        a, b = old[name](), new[name]()
        if a.shape == b.shape:
            yield name, _squared(b - a), _squared(a)


def _adapter_changes(first: Path, second: Path) -> Iterator[tuple[str, float, float]]:
    old, new = _tensors(first), _tensors(second)
    scales = _scale(first), _scale(second)
    for name in sorted(old.keys() & new.keys()):
        if not name.endswith("lora_A.weight"):
            continue
        partner = name.replace("lora_A", "lora_B")
        if partner not in old or partner not in new:
            continue
        a_old, b_old = old[name](), scales[0] * old[partner]()
        a_new, b_new = new[name](), scales[1] * new[partner]()
        stacked_a = np.concatenate([a_new, a_old])
        stacked_b = np.concatenate([b_new, -b_old], axis=1)
        yield name, _product_squared(stacked_b, stacked_a), _product_squared(b_old, a_old)


def _by_layer(pairs: Iterator[tuple[str, float, float]]) -> tuple[LayerChange, ...]:
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, change, before in pairs:
        match = _LAYER.search(name)
        total = sums[int(match[1]) if match else -1]
        total[0] += change
        total[1] += before
    return tuple(
        LayerChange(_OUTSIDE if number < 0 else f"layer {number}", math.sqrt(change), math.sqrt(before))
        for number, (change, before) in sorted(sums.items())
    )


def _product_squared(b: Matrix, a: Matrix) -> float:
    b64, a64 = b.astype(np.float64), a.astype(np.float64)
    # Rounding may make a difference of nothing slightly negative.
    return max(0.0, float(np.sum((b64.T @ b64) * (a64 @ a64.T))))


def _squared(value: Matrix) -> float:
    flat = value.reshape(-1).astype(np.float64)
    return float(flat @ flat)


class _Stored:
    """One tensor in a file, read when it is called."""

    def __init__(self, path: Path, start: int, dtype: str, shape: tuple[int, ...]) -> None:
        self.path, self.start, self.dtype, self.shape = path, start, dtype, shape

    def __call__(self) -> Matrix:
        count = math.prod(self.shape)
        with self.path.open("rb") as file:
            file.seek(self.start)
            raw = np.fromfile(file, dtype=_DTYPES[self.dtype], count=count)
        if self.dtype == "BF16":
            # bfloat16 is the upper half of a float32.
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32).reshape(self.shape)


def _tensors(folder: Path) -> dict[str, _Stored]:
    found: dict[str, _Stored] = {}
    for path in sorted(folder.glob("*.safetensors")):
        infos = read_header(path)
        start = path.stat().st_size - sum(info.nbytes for info in infos)
        for info in infos:
            if info.dtype in _DTYPES:
                found[info.name] = _Stored(path, start, info.dtype, info.shape)
            start += info.nbytes
    return found


def _scale(folder: Path) -> float:
    """alpha / r of an adapter (alpha / sqrt(r) where it says use_rslora)."""
    try:
        with (folder / "adapter_config.json").open("rb") as file:
            value = json.loads(file.read(_MAX_CONFIG_BYTES))
        rank = float(value["r"])
        return float(value["lora_alpha"]) / (math.sqrt(rank) if value.get("use_rslora") else rank)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        ZeroDivisionError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ModelError(
            f"{folder / 'adapter_config.json'} cannot be used ({error})", "a PEFT adapter", ""
        ) from None
