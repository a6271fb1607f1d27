"""What a data profile is: a pure change of conversations before they are tokenised.

A profile changes what the user is asked and how the assistant answers; the system turn is the config's and
stays. What it draws depends on the row's content and the seed alone, so that order, shuffling and resuming
change nothing. Loss is on the response only, whatever the profile (`tokens`). Knows no tokenizer.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from scaler_wizard.data.formats import Message
from scaler_wizard.errors import RowError

Respond: TypeAlias = Callable[[str, random.Random], str]
"""(the assistant's text, a generator of this turn's own) -> the assistant's text."""

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to shape conversations."""

    name: str
    summary: str
    """One sentence for people."""
    instructions: str
    """What is added to every user turn that is answered; "" adds nothing."""
    respond: Respond | None
    """What becomes of every answer; None leaves it."""

    def apply(self, messages: Sequence[Message], seed: int) -> tuple[Message, ...]:
        """The conversation as this profile wants it learned.

        Raises:
            RowError: an answer of which nothing is left.
        """
        if self.respond is None:
            return tuple(messages)
        changed = list(messages)
        for at, message in enumerate(messages):
            if message.role != "assistant":
                continue
            answer = self.respond(message.content, row_random(messages, seed, at))
            changed[at] = replace(message, content=answer)
            if self.instructions and at and messages[at - 1].role == "user":
                asked = messages[at - 1].content
                changed[at - 1] = replace(messages[at - 1], content=f"{asked}\n\n{self.instructions}")
        return tuple(changed)


def row_random(messages: Sequence[Message], seed: int, turn: int) -> random.Random:
    """The generator of one turn of one row: a stable hash of content, seed and turn."""
    hasher = hashlib.blake2b(f"{seed}/{turn}".encode(), digest_size=16)
    for message in messages:
        for part in (message.role, message.content):
            data = part.encode("utf-8", "surrogatepass")
            hasher.update(len(data).to_bytes(8, "little") + data)
    return random.Random(hasher.digest())


def without_thoughts(text: str) -> str:
    """`text` without `<think>...</think>`, closed or not.

    Raises:
        RowError: nothing else was said.
    """
    answer = _THOUGHT.sub("", text).strip()
    if not answer:
        raise RowError(
            "an answer of nothing but <think>...</think>", "something said after thinking",
            "remove the row", kind="empty_turn",
        )  # fmt: skip
    return answer
