"""The workspace's config.yaml: read with clear errors, changed one key at a time, never half-written.

Knows the file and the spec. Whether a change needs an unlock or a new signature is decided here as pure
functions of values; who asks, and the backup before it, are `jobs.config_service`' matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.errors import SpecError, WorkspaceError
from scaler_wizard.specs.base import inner_model, key_of
from scaler_wizard.specs.commented import commented_yaml
from scaler_wizard.specs.continual import LEARNING_SECTIONS, LOCKED, ContinualConfig
from scaler_wizard.specs.documentation import field_help
from scaler_wizard.specs.yaml_io import parse_yaml, read_yaml
from scaler_wizard.store.durable import OS, FileSystem, write_atomic
from scaler_wizard.store.workspace import Workspace
from scaler_wizard.store.yaml_edit import set_key, with_key

HEAD = """\
# What this workspace's daemon learns, and how it runs. A key that is left out has its default;
# `scaler config get` shows all of them, `scaler config set KEY VALUE` changes one.
# The sections model, lineage, training, data, replay, validation and safety are what you sign:
# after a change there, sign again with `scaler daemon sign`. The others may change at any time.
"""
SECRET = "notify.urls"  # noqa: S105 (a key's name: its values are never shown)
HIDDEN = "(not shown)"


@dataclass(frozen=True)
class Difference:
    """One key that differs."""

    key: str
    before: Any
    after: Any


def config_path(workspace: Workspace) -> Path:
    """config.yaml."""
    return workspace.root / "config.yaml"


def load(workspace: Workspace, overrides: Mapping[str, Any] | None = None) -> ContinualConfig:
    """The workspace's config: command line over file over defaults.

    Args:
        overrides: values by dotted key, as given on the command line; None values are left out.

    Raises:
        SpecError: no file, not YAML, an unknown key, a wrong value; names the key.
    """
    value = read_mapping(workspace)
    for key, given in (overrides or {}).items():
        if given is not None:
            value = with_key(value, key, given)
    return ContinualConfig.parse(value, "config")


def read_mapping(workspace: Workspace) -> dict[str, Any]:
    """What stands in the file; SpecError when there is none."""
    path = config_path(workspace)
    if not path.exists():
        raise SpecError(f"there is no {path}", "the workspace's config", "make one with `scaler daemon init`")
    return read_yaml(path)


def save(workspace: Workspace, config: ContinualConfig, fs: FileSystem = OS) -> None:
    """Write a config anew: every key, defaults too, with its meaning above it."""
    _write(config_path(workspace), _text(config), fs)


def check_change(workspace: Workspace, key: str, value: Any) -> ContinualConfig:
    """The config as it would be with one key changed; SpecError where that is refused."""
    return ContinualConfig.parse(with_key(read_mapping(workspace), key, value), "config")


def change(workspace: Workspace, key: str, value: Any, fs: FileSystem = OS) -> ContinualConfig:
    """Set one key in the file; the person's comments stay where the file is in block style.

    Raises:
        SpecError: the key or the value is refused; the file is then as it was.
    """
    config = check_change(workspace, key, value)
    path = config_path(workspace)
    text = set_key(path.read_text(encoding="utf-8"), key, value)
    _write(path, text or _text(config, only_set=True), fs)
    return config


def parse_value(text: str) -> Any:
    """What a person typed as a value: a number, true or false, a list in brackets, null, else a text."""
    try:
        return parse_yaml(f"value: {text}\n", "the value")["value"]
    except SpecError:
        return text


def value_at(config: ContinualConfig, key: str) -> Any:
    """The value of a dotted key, defaults included.

    Raises:
        UnknownKeyError: no such key; names the nearest.
    """
    field_help(key, ContinualConfig)
    value: Any = config.model_dump(mode="json", by_alias=True)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], sections: Iterable[str] | None = None
) -> list[Difference]:
    """Keys whose values differ, by dotted name. Pure.

    Args:
        sections: only these top-level sections.
    """
    old, new = flatten(before), flatten(after)
    wanted = None if sections is None else set(sections)
    return [
        Difference(key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and (wanted is None or key.partition(".")[0] in wanted)
    ]


def locked_changes(last_job: Mapping[str, Any], config: ContinualConfig) -> list[Difference]:
    """Locked keys in which a config differs from the last run's job; one it did not have yet is no change."""
    had = flatten(last_job)
    found = differences(last_job, config.model_dump(mode="json", by_alias=True), LEARNING_SECTIONS)
    return [item for item in found if item.key in LOCKED and item.key in had]


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> values by dotted key; an empty mapping has none."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = item
    return flat


def known_keys() -> list[str]:
    """Every key that holds a value, by dotted name."""

    def walk(model: Any, prefix: str) -> list[str]:
        keys: list[str] = []
        for name, field in model.model_fields.items():
            inner = inner_model(field.annotation)
            path = prefix + key_of(name, field)
            keys += walk(inner, f"{path}.") if inner is not None else [path]
        return keys

    return walk(ContinualConfig, "")


def _text(config: ContinualConfig, *, only_set: bool = False) -> str:
    unsigned = frozenset({"contract"}) if config.contract is None else frozenset()
    return HEAD + commented_yaml(config, leave_out=unsigned, only_set=only_set)


def _write(path: Path, text: str, fs: FileSystem) -> None:
    try:
        write_atomic(path, text, fs=fs)
    except OSError as error:
        raise WorkspaceError(
            f"{path} could not be written ({error.strerror})", "a working disk with space",
            "free some space; the old config is as it was",
        ) from error  # fmt: skip
