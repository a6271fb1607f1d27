"""The embedded world: letter tasks of the generators, with exact verifiers and an exact reader of
instructions.

The embedded model has met these tasks as documents, and never as instructions. Levels 1 to 3 have 3 or 4
letters: 15,600 inputs of 3 distinct letters, a fifth of them held out, and 358,800 of 4.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

from scaler_wizard.data.generators import GENERATORS, sample_example
from scaler_wizard.data.generators.edits import edited
from scaler_wizard.data.generators.example import Example, first_answer, is_held_out_text
from scaler_wizard.data.generators.sequences import TRANSFORMS
from scaler_wizard.data.generators.words import LETTERS
from scaler_wizard.data.world import Split, Task

EDITS: Final = ("replace", "remove", "append")
LETTER_TASKS: Final = (*TRANSFORMS, *EDITS)
"""The types that this world can have: all are one line of letters in and one out."""
MOST_LETTERS = 10
_DRAWS_FOR_OPENINGS = 60
_INSTRUCTION = re.compile(r"(?P<opening>[^:\n]{1,60}): (?P<letters>[a-z](?: [a-z])*)")


class EmbeddedWorld:
    """Letter tasks of some types and levels.

    Args:
        types: of `LETTER_TASKS`; all of them when empty.
        levels: of the generators, 1 (easiest) to 10.
    """

    name = "embedded"
    reads_tasks = True

    def __init__(self, types: Sequence[str] = (), levels: Sequence[int] = (1, 2, 3)) -> None:
        self._types = tuple(types) or LETTER_TASKS
        self._levels = tuple(levels)
        unknown = sorted(set(self._types) - set(LETTER_TASKS))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not among {', '.join(LETTER_TASKS)}")

    @property
    def types(self) -> tuple[str, ...]:
        """Every kind of task, in a fixed order."""
        return self._types

    def tasks(self, split: Split, n: int, seed: int, types: Sequence[str] | None = None) -> tuple[Task, ...]:
        """`n` tasks with inputs of their own, evenly over types and levels."""
        asked = tuple(self._types if types is None else types)
        found: list[Task] = []
        seen: set[tuple[str, str]] = set()
        draw = 0
        while len(found) < n and draw < 20 * n + 100:
            kind = asked[draw % len(asked)]
            level = self._levels[(draw // len(asked)) % len(self._levels)]
            example = sample_example(kind, f"world/{seed}/{draw}", level, split=split)
            draw += 1
            if (kind, example.input) not in seen:
                seen.add((kind, example.input))
                found.append(_task(example))
        return tuple(found)

    def verify(self, task: Task, output: str) -> bool:
        """Whether the first line of `output` is the task's answer."""
        return task.answer is not None and first_answer(output) == task.answer

    def read(self, text: str) -> Task | None:
        """The task that an instruction states, with its answer; None where it is not well formed.

        Well formed: an opening of one of the types, 2 to 10 letters, and letters to edit that occur (to be
        added, do not occur) among them.
        """
        found = _INSTRUCTION.fullmatch(text.strip())
        if found is None:
            return None
        letters = found["letters"].split()
        words = found["opening"].split()
        named = [word for word in words if word in LETTERS]
        shape = " ".join("_" if word in LETTERS else word for word in words)
        kind = _openings().get(shape)
        if kind not in self._types or not 2 <= len(letters) <= MOST_LETTERS:
            return None
        return _read_sequence(kind, letters, text) if kind in TRANSFORMS else _read_edit(
            kind, letters, named, text
        )  # fmt: skip

    def is_held_out(self, task: Task) -> bool:
        """Whether the input is among the fifth that is held out; never where there is no input."""
        return bool(task.input) and is_held_out_text(task.input)


@cache
def _openings() -> Mapping[str, str]:
    """From what stands before an instruction's colon, its named letters as "_", to the type."""
    found: dict[str, str] = {}
    for kind in LETTER_TASKS:
        for draw in range(_DRAWS_FOR_OPENINGS):
            instruction = GENERATORS[kind](random.Random(f"{kind}/{draw}"), 1).instruction
            opening = instruction.partition(":")[0].split()
            found[" ".join("_" if word in LETTERS else word for word in opening)] = kind
    return found


def _read_sequence(kind: str, letters: list[str], text: str) -> Task:
    joined = " ".join(letters)
    answer = " ".join(TRANSFORMS[kind](letters))
    return Task(kind, joined, f"{kind} [ {joined} ] =", text.strip(), None, answer)


def _read_edit(kind: str, letters: list[str], named: list[str], text: str) -> Task | None:
    joined = " ".join(letters)
    inside = [letter in letters for letter in named]
    if inside != {"replace": [True, False], "remove": [True], "append": [False]}[kind]:
        return None
    document = {"replace": "replace {} with {} in", "remove": "remove {} from", "append": "append {} to"}[
        kind
    ]
    return Task(
        kind, f"{' '.join(named)} {joined}", f"{document.format(*named)} [ {joined} ] =", text.strip(), None,
        " ".join(edited(kind, letters, named)),
    )  # fmt: skip


def _task(example: Example) -> Task:
    return Task(
        example.task, example.input, example.document, example.instruction, example.question, example.answer
    )
