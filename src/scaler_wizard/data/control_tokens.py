"""Text from outside to token ids in which none of a model's control tokens appears.

Who writes `<|im_end|>` into a question means the characters, and gets them: only the chat template opens and
ends turns, places pictures and invokes experts. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from scaler_wizard.errors import IncompatibleModelError, RowError

ROLES: Final = ("system", "user", "assistant")


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, its control tokens spelled out: none of `tokenizer`'s added tokens is among them.

    Text without control tokens gets the ids that the tokenizer gives it, without those it opens a text with.

    Raises:
        IncompatibleModelError: the tokenizer makes a control token even of a part of its text.
    """
    added: dict[str, int] = tokenizer.added_tokens_encoder
    longest_first = sorted(filter(None, added), key=len, reverse=True)
    if not longest_first:
        return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    forged = re.compile("|".join(map(re.escape, longest_first)))
    ids: list[int] = []
    start = 0
    while start < len(text):
        found = forged.search(text, start)
        # Cut behind a control token's first character, so that nothing joins its parts again.
        end = found.start() + 1 if found else len(text)
        ids += tokenizer.encode(text[start:end], add_special_tokens=False, verbose=False)
        start = end
    if made := sorted(set(ids) & set(added.values())):
        name = tokenizer.convert_ids_to_tokens(made[0])
        raise IncompatibleModelError(
            f"the tokenizer reads ordinary text as its control token {name!r}",
            "control tokens of at least two characters",
            "use the model's own tokenizer",
        )
    return ids


def chat_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, generation_prompt: bool = False
) -> list[int]:
    """Token ids of a conversation in the tokenizer's chat template, control tokens in its texts spelled out.

    Args:
        messages: {"role", "content"}; content is a text, or parts {"type": "text", "text"} and
            {"type": "image"}, of which the template makes one placeholder token a picture.
        generation_prompt: end with the opening of the assistant's turn.

    Raises:
        RowError: no message, or a role that is not one of `ROLES` (templates write it between control signs).
    """
    if not messages:
        raise RowError("a conversation without a message", "at least one", "say what the model shall answer")
    for message in messages:
        if message["role"] not in ROLES:
            raise RowError(
                f'a message with the role "{message["role"]}"',
                f"one of {', '.join(ROLES)}",
                "change the role",
            )
    ids = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        add_generation_prompt=generation_prompt,
        sanitize_control_tokens=True,
        return_dict=False,
    )
    return list(ids)
