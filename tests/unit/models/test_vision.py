"""Pictures in a prompt: transformers' own numbers, one encode an image, nothing kept on the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from scaler_wizard.data.control_tokens import chat_ids
from scaler_wizard.data.generators.screens import sample_screen, screen_png
from scaler_wizard.data.images import CheckedImage, read_image
from scaler_wizard.errors import IncompatibleModelError, RowError
from scaler_wizard.models.tiny import tiny_model
from scaler_wizard.models.tiny_vision import VisionProcessor, tiny_vision_model, tiny_vision_processor
from scaler_wizard.models.vision import FeatureCache, ImageEncoder, VisionContent, rotary_positions

Setup = tuple[Any, VisionProcessor]


@pytest.fixture(scope="module")
def vision() -> Setup:
    return tiny_vision_model(), tiny_vision_processor()


def picture(seed: int = 0, size: tuple[int, int] = (96, 64)) -> CheckedImage:
    checked = read_image(screen_png(sample_screen(seed, split="train")))
    resized = checked.image.resize(size)
    return replace(checked, image=resized, sha256=f"{checked.sha256}{size}")


def prompt(processor: VisionProcessor, *texts: str) -> list[int]:
    """A user's turn: a text behind every picture."""
    parts = [part for text in texts for part in ({"type": "image"}, {"type": "text", "text": text})]
    return chat_ids(processor.tokenizer, [{"role": "user", "content": parts}])


def theirs(setup: Setup, content: VisionContent, images: list[CheckedImage], **options: Any) -> Any:
    """transformers' own forward pass from token ids and pixels."""
    model, processor = setup
    ids = torch.tensor([content.ids])
    pixels = processor.pixels([image.image for image in images])
    with torch.no_grad():
        return model(
            input_ids=ids,
            pixel_values=pixels.values,
            image_grid_thw=pixels.grids,
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            **options,
        )


def ours(model: Any, content: VisionContent) -> torch.Tensor:
    with torch.no_grad():
        output = model.model.language_model(
            inputs_embeds=content.embeds[None],
            position_ids=content.positions[:, None],
            visual_pos_masks=content.visual[None],
            deepstack_visual_embeds=list(content.deepstack),
            use_cache=False,
        )
        logits: torch.Tensor = model.lm_head(output.last_hidden_state)
    return logits


@pytest.mark.parametrize("sizes", [[(96, 64)], [(64, 128)], [(96, 64), (32, 160)], [(64, 64), (64, 64)]])
def test_logits_are_those_of_transformers(vision: Setup, sizes: list[tuple[int, int]]) -> None:
    model, processor = vision
    images = [picture(seed, size) for seed, size in enumerate(sizes)]
    ids = prompt(processor, *(f"picture {i}" for i in range(len(sizes))))
    content = ImageEncoder(model, processor).content(ids, images)
    expected = theirs(vision, content, images).logits
    torch.testing.assert_close(ours(model, content), expected, rtol=1e-5, atol=1e-5)
    positions, deltas = model.model.get_rope_index(
        torch.tensor([content.ids]),
        content.visual[None].int(),
        processor.pixels([image.image for image in images]).grids,
    )
    assert torch.equal(content.positions, positions[:, 0])
    assert content.next_position == len(content.ids) + int(deltas)


def test_the_pictures_matter(vision: Setup) -> None:
    model, processor = vision
    encoder = ImageEncoder(model, processor)
    ids = prompt(processor, "what?")
    one, other = (ours(model, encoder.content(ids, [picture(seed)])) for seed in (0, 1))
    assert (one - other).abs().max() > 1e-3


def test_text_alone_is_text(vision: Setup) -> None:
    model, processor = vision
    ids = chat_ids(processor.tokenizer, [{"role": "user", "content": "hello"}])
    content = ImageEncoder(model, processor).content(ids)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits
    torch.testing.assert_close(ours(model, content), expected, rtol=1e-5, atol=1e-5)
    assert content.next_position == len(ids)


def test_nothing_is_left_on_the_model(vision: Setup) -> None:
    model, processor = vision
    encoder = ImageEncoder(model, processor)
    ids = prompt(processor, "what?")
    marker = torch.tensor([[7]])
    model.model.rope_deltas = marker
    try:
        first = encoder.content(ids, [picture(0)])
        logits = ours(model, first)
        # A request of another shape between two reads of the same one.
        ours(model, encoder.content(prompt(processor, "a", "b"), [picture(1, (32, 160)), picture(2)]))
        assert torch.equal(ours(model, first), logits)
        assert model.model.rope_deltas is marker
    finally:
        model.model.rope_deltas = None


def test_an_image_is_encoded_once_while_the_cache_has_it(vision: Setup) -> None:
    model, processor = vision
    encoder = ImageEncoder(model, processor)
    ids = prompt(processor, "what?")
    assert encoder.content(ids, [picture(0)]).encodes == 1
    assert encoder.content(ids, [picture(0)]).encodes == 0
    assert encoder.content(prompt(processor, "a", "b"), [picture(0), picture(1)]).encodes == 1
    assert encoder.encodes == 2
    room = encoder.encode(picture(0)).n_bytes
    small = ImageEncoder(model, processor, cache=FeatureCache(2 * room))
    for seed in (0, 1, 0, 2):  # 1 is the least recently used when 2 comes
        small.encode(picture(seed))
    assert small.encodes == 3
    small.encode(picture(0))
    assert small.encodes == 3
    small.encode(picture(1))
    assert small.encodes == 4


def test_encoders_of_the_same_weights_may_share_what_they_have_read(vision: Setup) -> None:
    model, processor = vision
    cache = FeatureCache()
    first, second = (ImageEncoder(model, processor, cache=cache) for _ in range(2))
    read = first.encode(picture(0))
    assert second.encode(picture(0)) is read
    assert (first.encodes, second.encodes) == (1, 0)


def test_places_and_pictures_must_agree(vision: Setup) -> None:
    model, processor = vision
    encoder = ImageEncoder(model, processor)
    with pytest.raises(RowError, match="1 places for pictures and 0"):
        encoder.content(prompt(processor, "a"))
    with pytest.raises(RowError, match="0 places for pictures and 1"):
        encoder.content([1, 20], [picture(0)])
    with pytest.raises(RowError, match="video"):
        encoder.content([1, model.config.video_token_id])


def test_a_text_model_has_no_eyes() -> None:
    with pytest.raises(IncompatibleModelError, match="no eyes"):
        ImageEncoder(tiny_model(), tiny_vision_processor())


def test_text_goes_on_behind_the_longer_side() -> None:
    positions, following = rotary_positions([False, *[True] * 6, False], [(1, 2, 3)])
    assert positions.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]
    assert following == 5
