"""A bundle of experts: their adapters, the router, and loras.json, which says what each of them is.

    loras.json              base, experts (path, dataset, source checkpoint, time, content hash), fallback
    experts/LABEL/          adapters in PEFT's format
    twins/LABEL/            plain LoRA twins of activated experts, for engines that do not know activation
    multitask/              one adapter for everything: the fallback
    router/                 as the router's own module writes it; absent in a bundle without one

A bundle may come from anywhere: everything in loras.json is hostile until it was checked here. Torch-free;
the weights' own checks are the loader's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from scaler_wizard.errors import CheckpointError, ModelError, ModelNotFoundError, WorkspaceError
from scaler_wizard.specs.experts import MOST_EXPERTS, RESERVED_LABELS
from scaler_wizard.store.durable import json_text
from scaler_wizard.store.names import SAFE_NAME, contained
from scaler_wizard.store.registry import content_hash

LORAS = "loras.json"
ROUTER, MULTITASK = "router", "multitask"
FORMAT = 1
MAX_BYTES = 4 << 20
_HASH = re.compile(r"[0-9a-f]{64}")
_MODES = ("alora", "lora")


@dataclass(frozen=True)
class BundledLora:
    """One adapter, as loras.json says."""

    label: str
    path: str
    """Below the bundle's folder."""
    mode: Literal["alora", "lora"]
    sha256: str
    """`registry.content_hash` of its folder."""
    saved_at: str
    """ISO 8601 with a UTC offset."""
    dataset: str | None = None
    """Folder name and hash of the data it learned, where that is known."""
    source_checkpoint: str | None = None
    """The run that trained it, or the directory it came from."""
    description: str = ""
    twin: str | None = None
    """Folder of its plain LoRA twin."""
    twin_sha256: str | None = None


@dataclass(frozen=True)
class Bundle:
    """loras.json, checked."""

    folder: Path
    base: str
    """The base model, as `planning.locate.resolve_model` takes it."""
    base_sha256: str | None
    """`models.hashing.weights_sha256` of the base that everything was trained on."""
    experts: tuple[BundledLora, ...]
    multitask: BundledLora | None
    router_sha256: str | None
    """Content hash of router/; None without a router."""
    fallback: Literal["base", "multitask"] = "base"
    max_new_tokens: int = 48
    system_prompt: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the experts."""
        return tuple(expert.label for expert in self.experts)

    @property
    def router(self) -> Path | None:
        """Folder of the router."""
        return self.folder / ROUTER if self.router_sha256 else None

    def folder_of(self, lora: BundledLora) -> Path:
        """Where an adapter lies."""
        return contained(self.folder, lora.path)

    def folder_of_twin(self, lora: BundledLora) -> Path | None:
        """Where its plain twin lies."""
        return contained(self.folder, lora.twin) if lora.twin else None


def write_bundle(bundle: Bundle) -> None:
    """Write loras.json into the bundle's folder, whose adapters are there already."""
    body = {
        "format": FORMAT, "base": bundle.base, "base_sha256": bundle.base_sha256,
        "loras": [asdict(expert) for expert in bundle.experts],
        "multitask": asdict(bundle.multitask) if bundle.multitask else None,
        "router_sha256": bundle.router_sha256, "fallback": bundle.fallback,
        "max_new_tokens": bundle.max_new_tokens, "system_prompt": bundle.system_prompt,
        "extra": dict(bundle.extra),
    }  # fmt: skip
    (bundle.folder / LORAS).write_text(json_text(body) + "\n", encoding="utf-8")


def read_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read and check a bundle.

    Args:
        verify: hash every adapter; False where who published it has just done so.

    Raises:
        ModelNotFoundError: no loras.json there.
        ModelError: not one of ours, a path that leads outside, a label twice, or bytes that are not as said.
    """
    path = folder / LORAS
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelNotFoundError(
            f"no experts at {folder} ({error.strerror})", f"a folder with {LORAS}", "check the path"
        ) from None
    try:
        if len(data) > MAX_BYTES:
            raise _UnusableError("it is over 4 MB")
        bundle = _parse(folder, json.loads(data))
        if verify:
            _verify(bundle)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, WorkspaceError) as error:
        why = error.found if isinstance(error, WorkspaceError) else str(error) or type(error).__name__
        raise ModelError(
            f"{path} cannot be used: {why}", "a file as `scaler experts export` writes it",
            "export it again, or mend what is named",
        ) from None  # fmt: skip
    return bundle


class _UnusableError(ValueError):
    """Why loras.json cannot be used."""


def _parse(folder: Path, value: Any) -> Bundle:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise _UnusableError(f"it is not of format {FORMAT}")
    loras = value["loras"]
    if not isinstance(loras, list) or not 1 <= len(loras) <= MOST_EXPERTS:
        raise _UnusableError(f"loras is not a list of 1 to {MOST_EXPERTS} experts")
    experts = tuple(_lora(folder, item, RESERVED_LABELS) for item in loras)
    labels = [expert.label for expert in experts]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise _UnusableError(f"the label {', '.join(twice)} stands there twice")
    multitask = value.get("multitask")
    together = _lora(folder, multitask, ()) if multitask is not None else None
    fallback = value.get("fallback", "base")
    if fallback not in ("base", "multitask") or (fallback == "multitask" and together is None):
        raise _UnusableError(f"the fallback {str(fallback)[:40]!r} is not there")
    tokens = value.get("max_new_tokens", 48)
    if type(tokens) is not int or not 1 <= tokens <= 4096:
        raise _UnusableError("max_new_tokens is not 1 to 4096")
    base = value["base"]
    if not isinstance(base, str) or not 0 < len(base) <= 4096 or "\0" in base:
        raise _UnusableError("base is not a name or a path")
    prompt = value.get("system_prompt")
    if prompt is not None and (not isinstance(prompt, str) or len(prompt) > 65_536):
        raise _UnusableError("system_prompt is not a text")
    extra = value.get("extra") or {}
    if not isinstance(extra, dict):
        raise _UnusableError("extra is not an object")
    bundle = Bundle(
        folder, base, _hash(value.get("base_sha256"), "base_sha256"), experts, together,
        _hash(value.get("router_sha256"), "router_sha256"), fallback, tokens, prompt, extra,
    )  # fmt: skip
    places = sorted(contained(folder, part.path) for part in parts(bundle))
    for one, following in pairwise(places):
        if following.is_relative_to(one):
            raise _UnusableError(f"{following.name} lies in another part of the bundle, or is one twice")
    return bundle


def _lora(folder: Path, value: Any, reserved: tuple[str, ...]) -> BundledLora:
    if not isinstance(value, dict):
        raise _UnusableError("an expert is not an object")
    if unknown := sorted(set(value) - set(BundledLora.__dataclass_fields__)):
        raise _UnusableError(f"an expert has the unknown key {str(unknown[0])[:40]!r}")
    label = value["label"]
    if not isinstance(label, str) or not SAFE_NAME.fullmatch(label) or label in reserved:
        raise _UnusableError(f"{str(label)[:40]!r} cannot be a label (letters, digits, dots, dashes)")
    if value["mode"] not in _MODES:
        raise _UnusableError(f"{label} has the mode {str(value['mode'])[:40]!r}")
    for key in ("path", "twin"):
        place = value.get(key)
        if place is None and key == "twin":
            continue
        if not isinstance(place, str) or not 0 < len(place) <= 1024:
            raise _UnusableError(f"{label} has no usable {key}")
        contained(folder, place)
    for key, most in (("dataset", 1024), ("source_checkpoint", 4096), ("description", 2000)):
        text = value.get(key)
        if text is not None and (not isinstance(text, str) or len(text) > most):
            raise _UnusableError(f"{key} of {label} is not a text of at most {most} characters")
    if datetime.fromisoformat(str(value["saved_at"])).utcoffset() is None:
        raise _UnusableError(f"saved_at of {label} has no UTC offset")
    found = BundledLora(**value)
    if _hash(found.sha256, "sha256") is None:
        raise _UnusableError(f"{label} has no content hash")
    if (_hash(found.twin_sha256, "twin_sha256") is None) != (found.twin is None):
        raise _UnusableError(f"{label} has a twin without a content hash, or a hash without a twin")
    return found


def _hash(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise _UnusableError(f"{name} is no SHA-256")
    return value


@dataclass(frozen=True)
class Part:
    """A folder of a bundle."""

    path: str
    """Below the bundle's folder."""
    sha256: str
    """`registry.content_hash` of it."""
    words: str


def parts(bundle: Bundle) -> list[Part]:
    """Every folder that belongs to a bundle."""
    every = [*bundle.experts, *([bundle.multitask] if bundle.multitask else [])]
    found = [Part(lora.path, lora.sha256, lora.label) for lora in every]
    found += [
        Part(lora.twin, lora.twin_sha256, f"twin of {lora.label}")
        for lora in every
        if lora.twin and lora.twin_sha256
    ]
    if bundle.router_sha256:
        found.append(Part(ROUTER, bundle.router_sha256, "the router"))
    return found


def _verify(bundle: Bundle) -> None:
    for part in parts(bundle):
        try:
            found = content_hash(contained(bundle.folder, part.path))
        except (ModelNotFoundError, CheckpointError, OSError) as error:
            why = error.found if isinstance(error, ModelError | CheckpointError) else str(error)
            raise _UnusableError(f"{part.words}: {why}") from None
        if found != part.sha256:
            raise _UnusableError(f"the bytes of {part.words} are not those that were saved ({found[:12]})")
