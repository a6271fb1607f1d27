"""The one row type every task generator returns, its exact verifier, and the train/held-out split.

Knows nothing of models or tokenizers. A task is stated three ways over the same input:

document     what a base model has read, `reverse [ a b c ] =`; the text continues with " c b a\\n"
instruction  an explicit request, "Reverse: a b c"
question     an implicit one, "How does a b c read backwards?"
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

MIN_LEVEL = 1
MAX_LEVEL = 10
HELD_OUT_SHARE = 0.2
# Every special token of the chat format opens with this, and no generated task text contains it.
CHAT_MARK = "<|"


def first_answer(output: str) -> str:
    """The part of a raw continuation that counts as the answer.

    Leading white space is dropped, then everything from the first newline or special token on.
    """
    return output.lstrip().split(CHAT_MARK)[0].split("\n")[0].strip()


@dataclass(frozen=True, slots=True)
class Example:
    """One task instance with its single right answer."""

    task: str
    """Registry name, a key of `GENERATORS`."""
    level: int
    """Difficulty, 1 (easiest) to 10."""
    input: str
    """All that the answer depends on; the split is a hash of it."""
    answer: str
    """The right answer, stripped, on one line."""
    document: str
    """Document-form prompt; ends exactly where the continuation " " + answer + newline starts."""
    instruction: str
    """Explicit instruction form."""
    question: str
    """Implicit question form."""

    @property
    def document_text(self) -> str:
        """The whole document as pretraining reads it: prompt, a space, answer, newline."""
        return f"{self.document} {self.answer}\n"

    def verify(self, output: str) -> bool:
        """Whether a model's raw continuation (first line, up to any special token) is the answer."""
        return first_answer(output) == self.answer


def is_held_out_text(text: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether sha256(text), read as a fraction of its range, falls below `share`."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def held_out(example: Example) -> bool:
    """Whether `example` belongs to the 20% of inputs that no training data may contain.

    The split is by input alone, so that an input held out of one task is held out of all that share it.
    """
    return is_held_out_text(example.input)


def check_level(level: int) -> None:
    """Raise ValueError unless `level` is one of 1..10."""
    if not MIN_LEVEL <= level <= MAX_LEVEL:
        raise ValueError(f"level is {level}, expected {MIN_LEVEL}..{MAX_LEVEL}")
