"""loras.json is hostile: what it says is checked before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.errors import ModelError, ModelNotFoundError
from scaler_wizard.store.experts_bundle import LORAS, Bundle, BundledLora, read_bundle, write_bundle
from scaler_wizard.store.registry import content_hash

WHEN = "2026-01-31T12:00:00+00:00"


def lora(folder: Path, label: str, place: str) -> BundledLora:
    directory = folder / place
    directory.mkdir(parents=True)
    (directory / "adapter_model.safetensors").write_bytes(label.encode())
    return BundledLora(
        label, place, "alora", content_hash(directory), WHEN, dataset="rows", description="a word"
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    experts = tuple(lora(tmp_path, label, f"experts/{label}") for label in ("a", "b"))
    made = Bundle(
        tmp_path, "seedling", "0" * 64, experts, lora(tmp_path, "multitask", "multitask"), None, "multitask"
    )
    write_bundle(made)
    return made


def test_a_bundle_is_read_as_it_was_written(bundle: Bundle) -> None:
    assert read_bundle(bundle.folder) == bundle


def changed(bundle: Bundle, **changes: Any) -> None:
    path = bundle.folder / LORAS
    value = json.loads(path.read_text(encoding="utf-8"))
    expert = changes.pop("expert", None)
    if expert is not None:
        value["loras"][0] |= expert
    path.write_text(json.dumps(value | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expert": {"label": "b"}}, "the label b stands there twice"),
        ({"expert": {"label": "../x"}}, "label"),
        ({"expert": {"label": "base"}}, "label"),
        ({"expert": {"label": 7}}, "label"),
        ({"expert": {"path": "../../etc"}}, "leads outside"),
        ({"expert": {"path": "/etc"}}, "leads outside"),
        ({"expert": {"path": None}}, "no usable path"),
        ({"expert": {"path": "experts/none"}}, "a: there is no model"),
        ({"expert": {"twin": "../x"}}, "leads outside"),
        ({"expert": {"mode": "full"}}, "mode"),
        ({"expert": {"sha256": "0" * 64}}, "not those that were saved"),
        ({"expert": {"sha256": "zz"}}, "no SHA-256"),
        ({"expert": {"saved_at": "yesterday"}}, "isoformat"),
        ({"expert": {"saved_at": "2026-01-31T12:00:00"}}, "no UTC offset"),
        ({"expert": {"command": "rm"}}, "unknown key 'command'"),
        ({"expert": {"description": "x" * 3000}}, "description"),
        ({"loras": []}, "loras"),
        ({"loras": {}}, "loras"),
        ({"format": 2}, "format"),
        ({"fallback": "a"}, "fallback"),
        ({"multitask": None}, "fallback"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"base": ""}, "base"),
        ({"system_prompt": 7}, "system_prompt"),
        ({"router_sha256": "0" * 64}, "the router"),
    ],
)
def test_what_is_wrong_with_it_is_said(bundle: Bundle, changes: dict[str, Any], words: str) -> None:
    changed(bundle, **changes)
    with pytest.raises(ModelError, match=words):
        read_bundle(bundle.folder)


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 100_000, '{"format": 1}', "null"])
def test_what_is_no_bundle_is_refused(bundle: Bundle, text: str) -> None:
    (bundle.folder / LORAS).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"loras\.json"):
        read_bundle(bundle.folder)


def test_a_changed_adapter_is_noticed_and_a_link_refused(bundle: Bundle) -> None:
    weights = bundle.folder / "experts" / "a" / "adapter_model.safetensors"
    weights.write_bytes(b"other")
    with pytest.raises(ModelError, match="the bytes of a are not"):
        read_bundle(bundle.folder)
    weights.unlink()
    weights.symlink_to("/etc/passwd")
    with pytest.raises(ModelError, match="link"):
        read_bundle(bundle.folder)


def test_a_folder_without_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no experts at"):
        read_bundle(tmp_path)
