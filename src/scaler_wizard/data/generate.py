"""Rows of generated tasks for a file: unique, named by their seed, with all that their verifier needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from scaler_wizard.data.generators import (
    DIFFICULTIES,
    GENERATORS,
    MAX_LEVEL,
    MIN_LEVEL,
    difficulty_of,
    sample_example,
)
from scaler_wizard.errors import SpecError

# A space of n inputs gives its last one after about n ln n draws; this many without a new one is the end.
MAX_REPEATS: Final = 2000

_LEVELS = re.compile(r"([0-9]{1,2})(?:-([0-9]{1,2}))?")

Form = Literal["instruction", "question"]


@dataclass(frozen=True, slots=True)
class GeneratedRow:
    """One row as a file holds it."""

    task: str
    level: int
    seed: str
    """What `sample_example` makes the same row from, with task, level and split."""
    split: str
    prompt: str
    answer: str

    def as_dict(self) -> dict[str, Any]:
        """A `messages` row with task, level, difficulty, seed, split and answer beside it."""
        turns = [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]
        return {
            "messages": turns, "task": self.task, "level": self.level,
            "difficulty": difficulty_of(self.level), "seed": self.seed, "split": self.split,
            "answer": self.answer,
        }  # fmt: skip


def parse_tasks(text: str) -> tuple[str, ...]:
    """Task names from "add,sort" or "all".

    Raises:
        SpecError: an unknown task.
    """
    names = tuple(GENERATORS) if text == "all" else tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in GENERATORS]
    if unknown:
        raise SpecError(f"no task {unknown[0]!r}", f"all, or some of {', '.join(GENERATORS)}", "name one")
    return names


def parse_levels(text: str) -> tuple[int, ...]:
    """Levels from "easy", "3", "2-5" or "all".

    Raises:
        SpecError: none of these, or outside 1..10.
    """
    if text == "all":
        return tuple(range(MIN_LEVEL, MAX_LEVEL + 1))
    for name, levels in DIFFICULTIES.items():
        if text == name:
            return tuple(levels)
    if match := _LEVELS.fullmatch(text):
        low, high = int(match[1]), int(match[2] or match[1])
        if MIN_LEVEL <= low <= high <= MAX_LEVEL:
            return tuple(range(low, high + 1))
    raise SpecError(
        f"no level {text!r}", f"easy, medium, hard, all, or numbers from {MIN_LEVEL} to {MAX_LEVEL}",
        "say for example --level 3, --level 2-5 or --level easy",
    )  # fmt: skip


def generated_rows(
    tasks: Sequence[str],
    levels: Sequence[int],
    count: int,
    seed: int,
    *,
    split: Literal["train", "held_out"] = "train",
    form: Form = "instruction",
) -> Iterator[GeneratedRow]:
    """`count` rows, tasks and levels in turn, no prompt or input twice; equal arguments give equal rows.

    Raises:
        SpecError: there are fewer different rows of these tasks and levels.
    """
    kinds = [(task, level) for level in levels for task in tasks]
    seen: set[tuple[str, str]] = set()
    given, repeats, draw = 0, 0, 0
    while given < count:
        task, level = kinds[draw % len(kinds)]
        name = f"{seed}/{draw}"
        example = sample_example(task, name, level, split=split)
        draw += 1
        if (task, example.input) in seen:
            repeats += 1
            if repeats > MAX_REPEATS + 10 * len(seen):
                raise SpecError(
                    f"these tasks and levels have about {given:,} different rows, and {count:,} were asked",
                    "as many rows as there are", "ask for fewer, or add tasks or levels",
                )  # fmt: skip
            continue
        seen.add((task, example.input))
        given += 1
        prompt = example.instruction if form == "instruction" else example.question
        yield GeneratedRow(task, level, name, split, prompt, example.answer)
