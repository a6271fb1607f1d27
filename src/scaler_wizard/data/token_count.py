"""How many tokens a row takes, in bounded memory. Knows tokenizers by their call; torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scaler_wizard.data.content import Content

PIECE_CHARACTERS = 65_536
"""Texts are counted in pieces, each cut costing about one token: offsets of 8 MB would take 500 MB."""


def token_counter(tokenizer: Any) -> Callable[[Content], int]:
    """A function from a row to its tokens, special tokens of the chat template included.

    tokenizer: a transformers tokenizer, or anything with `encode(text)` to a list or an object with `ids`.
    A row that the template refuses is counted without it: whether it can be trained is not asked here.
    """
    # A type error of a template is the template's, not ours; jinja2's errors are imported when needed.
    from jinja2 import TemplateError

    def count(content: Content) -> int:
        text = content.text
        if content.turns[0].role and getattr(tokenizer, "chat_template", None):
            try:
                turns = [turn.as_dict() for turn in content.turns]
                text = tokenizer.apply_chat_template(turns, tokenize=False)
            except (TemplateError, TypeError, ValueError):
                text = content.text
        pieces = range(0, len(text), PIECE_CHARACTERS)
        return sum(_length(tokenizer, text[at : at + PIECE_CHARACTERS]) for at in pieces)

    return count


def _length(tokenizer: Any, text: str) -> int:
    if callable(tokenizer):
        return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    encoded = tokenizer.encode(text)
    return len(getattr(encoded, "ids", encoded))
