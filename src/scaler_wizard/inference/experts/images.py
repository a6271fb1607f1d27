"""A conversation with pictures as the routed engine's content: pictures encoded once, named by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from scaler_wizard.data.control_tokens import chat_ids
from scaler_wizard.data.images import CheckedImage
from scaler_wizard.inference.experts.prompt import EmbeddedPrompt, Prompt
from scaler_wizard.models.vision import ImageEncoder, VisionContent


def image_token(sha256: str, place: int) -> int:
    """The negative token id of one visual token: a hash of its image and of its place in it."""
    digest = hashlib.sha256(f"{sha256}/{place}".encode()).digest()
    return -1 - (int.from_bytes(digest[:8], "big") >> 2)


def embedded_prompt(content: VisionContent) -> Prompt:
    """The routed engine's prompt of a content that `ImageEncoder.content` made."""
    visual = (
        image_token(sha256, place)
        for sha256, length in zip(content.images, content.image_tokens, strict=True)
        for place in range(length)
    )
    tokens = tuple(
        next(visual) if seen else token
        for token, seen in zip(content.ids, content.visual.tolist(), strict=True)
    )
    if not content.images:
        return Prompt(tokens)
    return Prompt(
        tokens,
        EmbeddedPrompt(content.embeds, content.positions, content.visual, content.deepstack, content.encodes),
    )


def chat_prompt(
    encoder: ImageEncoder, messages: Sequence[Mapping[str, Any]], images: Sequence[CheckedImage] = ()
) -> Prompt:
    """The content of a conversation, up to where the answer's opening (the invocation) starts.

    Args:
        messages: as `control_tokens.chat_ids` takes them; control tokens in their texts are characters.
        images: in the order of the messages' image parts.

    Raises:
        RowError: a wrong role, or places and pictures that do not agree.
    """
    return embedded_prompt(encoder.content(chat_ids(encoder.processor.tokenizer, messages), images))
