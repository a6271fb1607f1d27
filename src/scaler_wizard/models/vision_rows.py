"""Conversations about pictures to token rows and the features of their pictures, ready for a training.

The vision tower is frozen: each picture goes through it once, however many rows show it and epochs follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from scaler_wizard.data.control_tokens import chat_ids, plain_ids
from scaler_wizard.data.formats import Message
from scaler_wizard.data.images import CheckedImage
from scaler_wizard.data.picture_batches import PictureCollate
from scaler_wizard.data.rows import BadRows, row_error
from scaler_wizard.data.token_rows import TokenRows, flat_rows
from scaler_wizard.data.visual_tokens import RowPictures
from scaler_wizard.errors import EmptyDataError, RowError
from scaler_wizard.models.vision import ImageEncoder, expand_placeholders, rotary_positions

LLAVA_MARK: Final = "<image>"
"""Where data sets of the LLaVA format say that a picture stands; the row's own pictures are what counts."""


@dataclass(frozen=True, slots=True)
class VisionRow:
    """One input with its answer; without pictures, a row of text."""

    number: int
    messages: tuple[Message, ...]
    """What comes before the answer, the last turn the user's."""
    answer: str
    images: tuple[CheckedImage, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class VisionRows:
    """Token rows and, by the numbers of their data rows, the pictures in them."""

    rows: TokenRows
    collate: PictureCollate
    """For `Batches`."""

    def with_rows(self, rows: TokenRows) -> VisionRows:
        """The same pictures for rows that were marked (`data.activation`) or chosen."""
        return replace(self, rows=rows)


def picture_messages(messages: Sequence[Message], n_images: int) -> list[dict[str, Any]]:
    """Messages for `chat_ids`: all pictures at the start of the first turn of the user, before its text."""
    first = next((at for at, message in enumerate(messages) if message.role == "user"), None)
    made: list[dict[str, Any]] = []
    for at, message in enumerate(messages):
        if at == first and n_images:
            text = message.content.replace(LLAVA_MARK, "", n_images).strip("\n")
            parts: list[dict[str, str]] = [{"type": "image"} for _ in range(n_images)]
            made.append({"role": message.role, "content": [*parts, {"type": "text", "text": text}]})
        else:
            made.append({"role": message.role, "content": message.content})
    return made


def encode_vision_rows(
    rows: Iterable[VisionRow],
    encoder: ImageEncoder,
    *,
    context: int,
    bad_rows: BadRows | None = None,
    source: str = "data",
) -> VisionRows:
    """Tokenise every row once and encode every picture once; answers and their end are what is trained.

    Args:
        context: most tokens of a row. A longer one is refused: a picture cannot be cut.

    Raises:
        RowError: a row that the chat template refuses or that is too long, unless `bad_rows` sets them aside.
        EmptyDataError: no row left.
    """
    bad = bad_rows if bad_rows is not None else BadRows()
    pictures: dict[int, RowPictures] = {}
    found: list[tuple[int, list[int], list[bool]]] = []
    for row in rows:
        try:
            ids, n_prompt, seen = _encode(row, encoder)
            if len(ids) > context:
                raise RowError(f"{len(ids):,} tokens, and the context is {context:,}")
        except RowError as error:
            bad.add(row.number, row_error(source, row.number, error.found, error.expected))
            continue
        assert row.number not in pictures, f"two rows of number {row.number}"
        if seen is not None:
            pictures[row.number] = seen
        found.append((row.number, ids, [False] * n_prompt + [True] * (len(ids) - n_prompt)))
    if not found:
        raise EmptyDataError(
            f"{source} has no usable row" + (f" ({bad.first()})" if bad.count else ""),
            "at least one row", "check the rows and their pictures",
        )  # fmt: skip
    return VisionRows(flat_rows(found), PictureCollate(pictures))


def _encode(row: VisionRow, encoder: ImageEncoder) -> tuple[list[int], int, RowPictures | None]:
    """Token ids, how many of them come before the answer, and the pictures."""
    tokenizer, config = encoder.processor.tokenizer, encoder.config
    features = [encoder.encode(image) for image in row.images]
    messages = picture_messages(row.messages, len(row.images))
    prompt = chat_ids(tokenizer, messages, generation_prompt=True)
    prompt = expand_placeholders(prompt, [one.n_tokens for one in features], config)
    ids = [*prompt, *plain_ids(tokenizer, row.answer), tokenizer.eos_token_id]
    if not features:
        return ids, len(prompt), None
    visual = [token == config.image_token_id for token in ids]
    positions, _ = rotary_positions(visual, [one.grid for one in features])
    seen = RowPictures(
        torch.tensor(visual),
        positions,
        tuple(one.embeds for one in features),
        tuple(one.deepstack for one in features),
    )
    return ids, len(prompt), seen
