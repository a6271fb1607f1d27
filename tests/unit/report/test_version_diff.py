"""Changes between versions against numbers computed the long way, from real safetensors files."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from scaler_wizard.errors import ModelError
from scaler_wizard.report.version_diff import compare
from scaler_wizard.store.checkpoint_files import hash_files
from scaler_wizard.store.version_files import BaseReference, VersionManifest, manifest_bytes

RNG = np.random.default_rng(0)
NAME = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


def folder(path, kind, tensors, metrics, base=None, alpha=None):
    weights = path / ("adapter" if kind == "adapter" else "model")
    weights.mkdir(parents=True)
    save_file(tensors, weights / "model.safetensors")
    if alpha is not None:
        (weights / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": alpha}))
    manifest = VersionManifest(
        "a", kind, base, None, path.name, "", path.name, True, (), metrics, 1.0, hash_files(path)
    )
    (path / "manifest.json").write_bytes(manifest_bytes(manifest))
    return path


def adapter(layers):
    return {
        NAME.format(layer, part): RNG.normal(size=shape).astype(np.float32)
        for layer in range(layers)
        for part, shape in (("A", (2, 5)), ("B", (4, 2)))
    }


def test_an_adapter_s_change_is_that_of_its_product(tmp_path):
    old, new = adapter(2), adapter(2)
    base = BaseReference(None, "seedling", None)
    told = [
        {
            "accuracy": {"easy": {"n": 8, "before": {"value": 0.0}, "after": {"value": after}, "gained": 3}},
            "gap": {"train_loss": 2.0 * after}, "rows": {"trained": rows}, "tokens_per_second": 100.0 * rows,
        }
        for after, rows in ((0.5, 9), (0.75, 12))
    ]  # fmt: skip
    first = folder(tmp_path / "v001", "adapter", old, told[0], base, alpha=4)
    second = folder(tmp_path / "v002", "adapter", new, told[1], base, alpha=6)
    found = compare(first, second, ({"replay": {"fraction": 0.1}}, {"replay": {"fraction": 0.2}}))
    for layer, change in enumerate(found.layers):
        a, b = NAME.format(layer, "A"), NAME.format(layer, "B")
        whole = 3 * new[b] @ new[a] - 2 * old[b] @ old[a]
        assert change.layer == f"layer {layer}"
        assert change.norm == pytest.approx(np.linalg.norm(whole), rel=1e-5)
        assert change.before == pytest.approx(np.linalg.norm(2 * old[b] @ old[a]), rel=1e-5)
    assert found.words == "accuracy on easy +0.25, rows learned +3, training loss +0.50"
    assert [item.key for item in found.settings] == ["replay.fraction"]
    assert "adapter/model.safetensors" in found.files


def test_a_version_against_itself_moved_nowhere(tmp_path):
    first = folder(tmp_path / "v001", "adapter", adapter(1), {}, BaseReference(None, "s", None), alpha=1)
    found = compare(first, first)
    assert found.layers[0].norm == pytest.approx(0, abs=1e-5)
    assert (found.files, found.words) == ((), "no measured change")


def test_whole_models_by_layer_also_in_bfloat16(tmp_path):
    old = {"model.layers.11.w": np.ones((3, 4), np.float32), "embed": np.zeros(2, np.float32)}
    new = {"model.layers.11.w": np.full((3, 4), 1.5, np.float32), "embed": np.array([3, 4], np.float32)}
    first = folder(tmp_path / "v001", "full", old, {})
    second = folder(tmp_path / "v002", "full", new, {})
    found = compare(first, second)
    assert [(item.layer, item.norm) for item in found.layers] == [
        ("outside the layers", 5.0), ("layer 11", pytest.approx(0.5 * math.sqrt(12))),
    ]  # fmt: skip
    half = (np.array([1.0, -2.5], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    for name in ("v003", "v004"):
        place = folder(tmp_path / name, "full", {}, {}) / "model" / "model.safetensors"
        values = half if name == "v003" else half * 0
        place.write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    (only,) = compare(tmp_path / "v003", tmp_path / "v004").layers
    assert only.norm == pytest.approx(math.sqrt(1 + 6.25))


def test_other_kinds_and_bases_are_not_compared_by_weight(tmp_path):
    plain = folder(tmp_path / "v001", "adapter", adapter(1), {}, BaseReference(None, "a", None), alpha=1)
    other = folder(tmp_path / "v002", "adapter", adapter(1), {}, BaseReference(1, "v001", None), alpha=1)
    whole = folder(tmp_path / "v003", "full", {"w": np.ones(1, np.float32)}, {})
    assert "different bases" in compare(plain, other).note
    assert "whole model" in compare(plain, whole).note
    (plain / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged"):
        compare(plain, whole)
