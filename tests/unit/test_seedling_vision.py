"""The shipped vision base is what its evaluation says: it reads screens as documents, and answers nothing."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from scaler_wizard.data.control_tokens import chat_ids
from scaler_wizard.data.formats import Message
from scaler_wizard.data.generators.screen_documents import READ_REQUEST, screen_document
from scaler_wizard.data.generators.screens import (
    SCREEN_SKILLS,
    sample_screen,
    sample_screen_example,
    screen_png,
)
from scaler_wizard.data.images import read_image
from scaler_wizard.models.load import LoadedModel, load_model
from scaler_wizard.models.vision import ImageEncoder, VisionContent
from scaler_wizard.models.vision_files import load_vision_processor
from scaler_wizard.models.vision_rows import picture_messages
from scaler_wizard.planning.locate import SEEDLING_VISION, resolve_model

FOLDER = resolve_model(SEEDLING_VISION)
BUILD = json.loads((FOLDER / "build.json").read_text(encoding="utf-8"))
EVALUATION = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))


@cache
def load() -> tuple[LoadedModel, ImageEncoder]:
    loaded = load_model(SEEDLING_VISION, dtype=torch.float32, device="cpu")
    processor = load_vision_processor(loaded.path, loaded.model, loaded.tokenizer)
    return loaded, ImageEncoder(loaded.model, processor)


@torch.no_grad()
def predicted(content: VisionContent) -> list[int]:
    """The likeliest token after each token."""
    model = load()[0].model
    hidden = model.get_decoder()(
        inputs_embeds=content.embeds[None],
        position_ids=content.positions[:, None],
        visual_pos_masks=content.visual[None],
        deepstack_visual_embeds=list(content.deepstack),
        use_cache=False,
    ).last_hidden_state
    chosen: list[int] = model.lm_head(hidden)[0].argmax(-1).tolist()
    return chosen


def entries(seed: int) -> Iterator[tuple[str, bool]]:
    """The sign of each entry of a held-out document, and whether what follows is predicted."""
    loaded, encoder = load()
    screen = sample_screen(f"asset {seed}", split="held_out")
    messages = picture_messages((Message("user", READ_REQUEST),), 1)
    prompt = chat_ids(loaded.tokenizer, messages, generation_prompt=True)
    document = screen_document(random.Random(seed), screen)
    ids = [*prompt, *loaded.tokenizer.encode(document)]
    content = encoder.content(ids, [read_image(screen_png(screen))])
    chosen = predicted(content)
    at = len(content.ids) - len(loaded.tokenizer.encode(document))
    for entry in document.split("; "):
        word, sign, said = entry.split(" ", 2)
        start = at + len(loaded.tokenizer.encode(f"{word} {sign}"))
        end = start + len(loaded.tokenizer.encode(f" {said}"))
        yield sign, list(content.ids[start:end]) == chosen[start - 1 : end - 1]
        at = end + 1


def test_files_are_those_the_build_recorded() -> None:
    for name, digest in BUILD["sha256"].items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name
    assert sum(file.stat().st_size for file in Path(FOLDER).iterdir()) < 2_000_000
    assert sum(p.numel() for p in load()[0].model.parameters()) == BUILD["parameters"]


def test_it_sees_what_held_out_screens_show() -> None:
    right, asked = Counter[str](), Counter[str]()
    for seed in range(40):
        for sign, found in entries(seed):
            asked[sign] += 1
            right[sign] += found
    assert set(asked) == {"at", "=", "x"}
    for sign, count in asked.items():
        claimed = EVALUATION["documents"][sign]["right"] / EVALUATION["documents"][sign]["of"]
        assert claimed > 0.95
        assert right[sign] / count > claimed - 0.06, sign


def test_it_has_never_been_asked() -> None:
    loaded, encoder = load()
    assert all(found["right"] == 0 for found in EVALUATION["questions"].values())
    for skill in SCREEN_SKILLS:
        for seed in range(5):
            example = sample_screen_example(skill, f"asset {seed}", split="held_out")
            messages = picture_messages((Message("user", example.question),), 1)
            ids = chat_ids(loaded.tokenizer, messages, generation_prompt=True)
            chosen = predicted(encoder.content(ids, [read_image(screen_png(example.screen))]))[-1]
            assert not example.answer.startswith(loaded.tokenizer.decode([chosen]).strip())
