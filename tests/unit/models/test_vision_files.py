"""A vision model's directory: loaded whole, its image processor read as numbers and checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from scaler_wizard.data.generators.screens import draw_screen, sample_screen
from scaler_wizard.errors import ModelError, ModelNotFoundError
from scaler_wizard.models.load import load_model
from scaler_wizard.models.tiny_vision import TINY_CONTEXT, tiny_vision_model, tiny_vision_processor
from scaler_wizard.models.vision_files import FILE, load_vision_processor, save_vision_processor

MODEL = tiny_vision_model()
PROCESSOR = tiny_vision_processor(["button"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = tiny_vision_model(vocab_size=len(PROCESSOR.tokenizer))
    model.save_pretrained(folder)
    PROCESSOR.tokenizer.save_pretrained(folder)
    save_vision_processor(PROCESSOR, folder)
    return folder


def test_a_saved_model_is_loaded_with_its_eyes(saved: Path) -> None:
    loaded = load_model(saved, dtype=torch.float32, device="cpu")
    assert isinstance(loaded.model, Qwen3VLForConditionalGeneration)
    assert loaded.base_context == TINY_CONTEXT
    text = "the button<|im_end|>"
    assert loaded.tokenizer.encode(text) == PROCESSOR.tokenizer.encode(text)
    processor = load_vision_processor(saved, loaded.model, loaded.tokenizer)
    picture = draw_screen(sample_screen(0, split="train")).resize((150, 70))
    found, expected = processor.pixels([picture]), PROCESSOR.pixels([picture])
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.grids, expected.grids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 14}, "patch_size"),
        ({"merge_size": "2"}, "merge_size"),
        ({"temporal_patch_size": None}, "temporal_patch_size"),
        ({"size": 7}, "shortest_edge"),
        ({"size": {"shortest_edge": 1024, "longest_edge": 10**12}}, "longest_edge"),
        ({"size": {"shortest_edge": 2048, "longest_edge": 1024}}, "size in"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std"),
    ],
)
def test_what_is_no_processor_of_this_model_is_refused(
    saved: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    values = json.loads((saved / FILE).read_text()) | changes
    (tmp_path / FILE).write_text(json.dumps(values))
    with pytest.raises(ModelError, match=message):
        load_vision_processor(tmp_path, MODEL, PROCESSOR.tokenizer)


def test_damaged_and_missing_files_are_said(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="preprocessor"):
        load_vision_processor(tmp_path, MODEL, PROCESSOR.tokenizer)
    for content in (b"[]", b"{", b"\xff", b"[" * 2000, b" " * (2 << 20)):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(ModelError):
            load_vision_processor(tmp_path, MODEL, PROCESSOR.tokenizer)


def test_a_model_without_its_tower_is_refused(saved: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(saved, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["vision_config"]["depth"] = 3
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="lacks"):
        load_model(broken, dtype=torch.float32, device="cpu")
