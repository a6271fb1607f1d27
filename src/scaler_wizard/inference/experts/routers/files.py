"""A router on disk: router.json, router.safetensors, and its own adapter in PEFT's format under adapter/.

What is read is hostile input: every field is checked for type, size and range before it is used, and the
tensors against the fields. Equal routers give equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scaler_wizard.errors import ModelError, ModelNotFoundError
from scaler_wizard.inference.experts.bank import Bank
from scaler_wizard.inference.experts.routers.trained import TrainedRouter
from scaler_wizard.inference.experts.routing import RouterKind
from scaler_wizard.models.tensor_files import Files, TensorFile, write_files
from scaler_wizard.planning.safetensors_header import parse_json

ROUTER_FILE = "router.json"
WEIGHTS_FILE = "router.safetensors"
ADAPTER_FOLDER = "adapter"
FORMAT: Final = 1
MAX_JSON_BYTES: Final = 1 << 20
MAX_WEIGHT_BYTES: Final = 64 << 20
MAX_LABELS: Final = 64
MAX_SUFFIX: Final = 64
MAX_LAYERS: Final = 4096
MAX_TEMPERATURE: Final = 1e3
EMPTY: Final = torch.empty(0)


def router_files(router: TrainedRouter) -> Files:
    """Everything but the adapter, which training has written already."""
    fields = {
        "format": FORMAT, "kind": router.kind, "labels": list(router.labels), "layer": router.layer,
        "text_only": router.text_only,
        "suffix": list(router.suffix), "label_tokens": list(router.label_tokens),
        "adapter": router.adapter, "temperature": router.temperature, "threshold": router.threshold,
    }  # fmt: skip
    text = json.dumps(fields, indent=1, sort_keys=True) + "\n"
    tensors = {"weight": router.weight.float().contiguous(), "bias": router.bias.float().contiguous()}
    return {ROUTER_FILE: text.encode(), WEIGHTS_FILE: TensorFile(tensors)}


def save_router(router: TrainedRouter, directory: Path) -> None:
    """Write a router beside its adapter; OSError when the disk refuses."""
    directory.mkdir(parents=True, exist_ok=True)
    write_files(router_files(router), directory)


def load_router(directory: Path, bank: Bank) -> TrainedRouter:
    """Read a router and put its adapter, where it has one, into the bank.

    Raises:
        ModelNotFoundError: no router there. ModelError: a field or tensor that cannot be right, or an adapter
            that is not the one the router was trained with. ExpertError: see `Bank.load`.
    """
    path = directory / ROUTER_FILE
    if not path.is_file():
        raise ModelNotFoundError(f"no router in {directory}", f"{ROUTER_FILE} and {WEIGHTS_FILE}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path} is larger than {MAX_JSON_BYTES:,} bytes", "a router's description")
    router = _router(parse_json(path.read_bytes(), path), _tensors(directory / WEIGHTS_FILE), path)
    if router.adapter is not None:
        held = bank.load(directory / ADAPTER_FOLDER)
        if held.hash != router.adapter:
            raise ModelError(
                f"the adapter beside {path} has the content {held.hash[:12]}",
                f"the one the router was trained with, {router.adapter[:12]}",
                "copy the router's folder again as a whole",
            )
    return router


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelNotFoundError(f"no {WEIGHTS_FILE} in {path.parent}", "the router's weights")
    if path.stat().st_size > MAX_WEIGHT_BYTES:
        raise ModelError(f"{path} is larger than {MAX_WEIGHT_BYTES:,} bytes", "a router's weights")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({str(error)[:200]})", "a complete safetensors file"
        ) from None
    return tensors


def _router(values: Any, tensors: dict[str, Tensor], path: Path) -> TrainedRouter:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ModelError(f"{path} is of another format", f"a router of format {FORMAT}", "train it again")

    def read(key: str, ok: Callable[[Any], bool]) -> Any:
        value = values.get(key)
        if not ok(value):
            raise ModelError(
                f"{path} sets {key} to {str(value)[:60]!r}", "a value that a trained router has",
                "train the router again, or copy its folder from where it was made",
            )  # fmt: skip
        return value

    kind: RouterKind = read("kind", lambda v: isinstance(v, str) and v in get_args(RouterKind))
    labels = read("labels", _are_labels)
    n_tokens = len(labels) if kind == "suffix" else 0
    router = TrainedRouter(
        labels=tuple(labels), kind=kind, weight=tensors.get("weight", EMPTY), bias=tensors.get("bias", EMPTY),
        layer=read("layer", lambda v: type(v) is int and 1 <= v <= MAX_LAYERS),
        # Routers of before pictures' tokens could be left out do not say it.
        text_only=bool(read("text_only", lambda v: v is None or type(v) is bool)),
        suffix=tuple(read("suffix", lambda v: _are_tokens(v, MAX_SUFFIX) and bool(v) == (kind == "suffix"))),
        label_tokens=tuple(
            read("label_tokens", lambda v: _are_tokens(v, MAX_LABELS) and len(set(v)) == len(v) == n_tokens)
        ),
        adapter=read("adapter", lambda v: v is None if kind == "features" else _is_hash(v)),
        temperature=float(read("temperature", lambda v: _in_range(v, MAX_TEMPERATURE) and v > 0)),
        threshold=float(read("threshold", lambda v: _in_range(v, 1.0))),
    )  # fmt: skip
    if set(tensors) != {"weight", "bias"} or not _fits(router):
        raise ModelError(
            f"{path.parent / WEIGHTS_FILE} does not fit {ROUTER_FILE}",
            f"finite weight [{len(labels)}, ...] and bias [{len(labels)}]",
            "copy the router's folder again as a whole",
        )
    return replace(router, weight=router.weight.float(), bias=router.bias.float())


def _fits(router: TrainedRouter) -> bool:
    """Whether the tensors are finite and of the shapes that the labels ask for."""
    n_labels = len(router.labels)
    finite = all(t.is_floating_point() and bool(t.isfinite().all()) for t in (router.weight, router.bias))
    return (
        finite
        and router.weight.dim() == 2
        and router.weight.shape[0] == n_labels
        and (router.kind != "suffix" or router.weight.shape[1] == n_labels)
        and tuple(router.bias.shape) == (n_labels,)
    )


def _are_labels(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 2 <= len(value) <= MAX_LABELS
        and all(isinstance(item, str) and 0 < len(item) <= 200 for item in value)
        and len(set(value)) == len(value)
    )


def _are_tokens(value: Any, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(item) is int and 0 <= item < 2**31 for item in value)
    )


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _in_range(value: Any, most: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= most
