"""The one row type every task generator returns, its exact verifier, and the train/held-out split.

Knows nothing of models or tokenizers. A task is stated three ways over the same input:

document     what a base model has read, `reverse [ a b c ] =`; the text continues with " c b a\\n"
instruction  an explicit request, "Reverse: a b c"
question     an implicit one, "How does a b c read backwards?"
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

MIN_LEVEL = 1
MAX_LEVEL = 10
Difficulty = Literal["easy", "medium", "hard"]
DIFFICULTIES: Final[dict[Difficulty, range]] = {
    "easy": range(1, 4), "medium": range(4, 8), "hard": range(8, 11),
}  # fmt: skip
# Tasks whose answer is one JSON object, which may be written with other white space or over several lines.
JSON_TASKS: Final = frozenset({"syllo"})
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
        """Whether a model's raw continuation is the answer, see `verify_answer`."""
        return verify_answer(self.task, self.answer, output)


def verify_answer(task: str, answer: str, output: str) -> bool:
    """Whether a raw continuation is the right answer to a row of `task`.

    Exactly: its first line up to any special token; for `JSON_TASKS` everything up to a special token, read
    as JSON, with equal keys, values and order of lists, and nothing beside it.
    """
    if task not in JSON_TASKS:
        return first_answer(output) == answer
    try:
        # As text again, because 1 == 1.0 == True in Python.
        return _canonical(output.split(CHAT_MARK)[0]) == _canonical(answer)
    except (ValueError, RecursionError):
        return False


def _canonical(text: str) -> str:
    value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    return json.dumps(value, sort_keys=True)


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def difficulty_of(level: int) -> Difficulty:
    """easy for levels 1 to 3, medium for 4 to 7, hard for 8 to 10. Raises ValueError outside 1..10."""
    check_level(level)
    return next(name for name, levels in DIFFICULTIES.items() if level in levels)


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
