"""Features of pictures on disk: the same bits for other processes; what is torn or too much goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from scaler_wizard.data.generators.screens import sample_screen, screen_png
from scaler_wizard.data.images import CheckedImage, read_image
from scaler_wizard.models.feature_files import FeatureFiles, tower_key
from scaler_wizard.models.tiny_vision import tiny_vision_model, tiny_vision_processor
from scaler_wizard.models.vision import ImageEncoder, ImageFeatures

PROCESSOR = tiny_vision_processor()
MODEL = tiny_vision_model()
TENSORS = {"embeds": torch.arange(256.0), "grid": torch.tensor([1, 2, 2])}


def picture(seed: int) -> CheckedImage:
    return read_image(screen_png(sample_screen(seed, split="train")))


def encoder(folder: Path) -> ImageEncoder:
    return ImageEncoder(MODEL, PROCESSOR, files=FeatureFiles(folder))


def same(one: ImageFeatures, other: ImageFeatures) -> bool:
    parts = zip((one.embeds, *one.deepstack), (other.embeds, *other.deepstack), strict=True)
    return one.grid == other.grid and all(torch.equal(a, b) for a, b in parts)


def test_a_later_encoder_finds_the_very_same_features(tmp_path: Path) -> None:
    first, later = encoder(tmp_path), encoder(tmp_path)
    before = [first.encode(picture(seed)) for seed in (0, 1, 0)]
    after = [later.encode(picture(seed)) for seed in (0, 1, 0)]
    assert all(same(one, other) for one, other in zip(before, after, strict=True))
    assert (first.encodes, first.from_disk) == (2, 0)
    assert (later.encodes, later.from_disk) == (0, 2)


def test_other_weights_formats_and_processors_have_features_of_their_own() -> None:
    settings = PROCESSOR.images.to_dict()
    keys = [tower_key(MODEL.model.visual, settings)]
    keys.append(tower_key(MODEL.model.visual, {**settings, "size": {"longest_edge": 1}}))
    other = tiny_vision_model()
    keys.append(tower_key(other.model.visual.to(torch.bfloat16), settings))
    other = tiny_vision_model()
    with torch.no_grad():
        next(other.model.visual.parameters()).add_(1.0)
    keys.append(tower_key(other.model.visual, settings))
    assert len(set(keys)) == 4
    assert tower_key(tiny_vision_model().model.visual, settings) == keys[0]


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "swapped", "no safetensors"])
def test_a_file_that_is_not_what_was_written_is_made_again(tmp_path: Path, damage: str) -> None:
    first = encoder(tmp_path)
    right = first.encode(picture(0))
    (file,) = tmp_path.glob("*/*.safetensors")
    whole = file.read_bytes()
    other = encoder(tmp_path / "other")
    other.encode(picture(1))
    (swapped,) = (tmp_path / "other").glob("*/*.safetensors")
    file.write_bytes({
        "cut": whole[:-9], "empty": b"", "zeros": whole[:-64] + bytes(64), "no safetensors": b"{" * 99,
        "swapped": whole[: -len(whole) // 2] + swapped.read_bytes()[-len(whole) // 2 :],
    }[damage])  # fmt: skip
    again = encoder(tmp_path)
    assert same(again.encode(picture(0)), right)
    assert (again.encodes, again.from_disk) == (1, 0)
    assert file.read_bytes() == whole


def test_the_least_recently_used_go_when_it_is_full(tmp_path: Path) -> None:
    probe = FeatureFiles(tmp_path / "probe")
    probe.keep("t", "0", TENSORS)
    one = next((tmp_path / "probe" / "t").iterdir()).stat().st_size
    files = FeatureFiles(tmp_path / "full", max_bytes=3 * one)
    for number in range(3):
        files.keep("t", str(number), TENSORS)
        os.utime(tmp_path / "full" / "t" / f"{number}.safetensors", (number, number))
    assert files.read("t", "0") is not None  # and is used now
    files.keep("t", "3", TENSORS)
    left = {path.stem for path in (tmp_path / "full" / "t").iterdir()}
    assert "1" not in left
    assert {"0", "3"} <= left
    assert sum(path.stat().st_size for path in (tmp_path / "full" / "t").iterdir()) <= 3 * one


def test_what_only_reads_adds_nothing(tmp_path: Path) -> None:
    reading = FeatureFiles(tmp_path, write=False)
    reading.keep("t", "0", TENSORS)
    assert list(tmp_path.iterdir()) == []
    FeatureFiles(tmp_path).keep("t", "0", TENSORS)
    found = reading.read("t", "0")
    assert found is not None
    assert torch.equal(found["embeds"], TENSORS["embeds"])


def test_a_place_that_cannot_be_written_is_a_slower_encoder_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = encoder(tmp_path / "file")
    blocked.encode(picture(0))
    blocked.encode(picture(1))
    assert (blocked.encodes, blocked.from_disk) == (2, 0)
