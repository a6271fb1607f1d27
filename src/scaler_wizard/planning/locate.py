"""From the name of a model to its directory on this machine. Never downloads anything."""

from __future__ import annotations

import os
import re
from pathlib import Path

from scaler_wizard.errors import ModelNotFoundError

SEEDLING = "seedling"
SEEDLING_VISION = "seedling-vision"
# Embedded models and the scripts that build them.
_EMBEDDED = {SEEDLING: "build_seedling.py", SEEDLING_VISION: "build_tiny_vision.py"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def resolve_model(ref: str, revision: str | None = None) -> Path:
    """The directory of a model: the embedded one, a local directory, or the local hub cache.

    Args:
        ref: "seedling" or "seedling-vision", a path (`./seedling` for a directory of that name), or a hub
            name (org/name).
        revision: commit, tag or branch of a hub model; "main" by default.

    Raises:
        ModelNotFoundError: nothing of that name is on this machine; says how to download it.
    """
    if ref in _EMBEDDED:
        return _embedded(ref)
    path = Path(ref).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        raise ModelNotFoundError(
            f"{ref} is a file", "the directory that holds config.json", f'use "{path.parent}"'
        )
    if not _HUB_NAME.fullmatch(ref) or ".." in ref:
        raise ModelNotFoundError(
            f"no model directory at {ref}",
            'an existing directory, a Hugging Face name (org/name), or "seedling"',
            "check model.base_model",
        )
    return _from_cache(ref, revision)


def hub_cache() -> Path:
    """Folder of downloaded hub models, by the same environment variables as huggingface_hub."""
    if explicit := os.environ.get("HF_HUB_CACHE"):
        return Path(explicit).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(home).expanduser() / "hub"


def _embedded(name: str) -> Path:
    folder = Path(__file__).resolve().parent.parent / "assets" / name
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(
            f"the embedded model is not in {folder}",
            "config.json and model.safetensors, shipped with the package",
            f"install the package again, or run scripts/{_EMBEDDED[name]} in a source checkout",
        )
    return folder


def _from_cache(ref: str, revision: str | None) -> Path:
    wanted = revision or "main"
    store = hub_cache() / f"models--{ref.replace('/', '--')}"
    if _REVISION.fullmatch(wanted) and ".." not in wanted:
        pointer = store / "refs" / wanted
        commit = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else wanted
        snapshot = store / "snapshots" / commit
        if re.fullmatch(r"[A-Za-z0-9._-]+", commit) and (snapshot / "config.json").exists():
            return snapshot
    option = f" --revision {wanted}" if revision else ""
    raise ModelNotFoundError(
        f'"{ref}" (revision {wanted}) is neither a directory nor in the hub cache {hub_cache()}',
        "a downloaded model",
        f"run `hf download {ref}{option}` while online, then start again",
    )
