"""What a world of tasks is: the same task as a document, an explicit instruction and an implicit question.

A base model knows some tasks as documents only. The bootstrap teaches it, stage by stage, to be asked in
other ways; this module holds the words that all of its parts share. Right answers are for evaluation and for
measuring how precise self-made data is. No training data is ever chosen by them. Torch-free; knows no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Split = Literal["train", "held_out"]
Skill = Literal["explicit", "implicit", "make", "evaluate", "revise"]
SKILLS: tuple[Skill, ...] = ("explicit", "implicit", "make", "evaluate", "revise")
"""What stages 1 to 5 teach, in order."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task over one input."""

    type: str
    """Kind of task: statistics and topics go by it."""
    input: str
    """All that the answer depends on; the split is a hash of it."""
    document: str
    """What a base model continues with " " + answer + newline."""
    explicit: str
    """The instruction."""
    implicit: str | None = None
    """A question that implies it; None where nobody wrote one."""
    answer: str | None = None
    """The right answer; None where nobody knows it."""

    @property
    def id(self) -> str:
        """Names the task wherever it is asked: 16 hexadecimal digits of the hash of type and instruction."""
        return hashlib.sha256(f"{self.type}\0{self.explicit}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a checked output is."""

    right: bool
    reason: str = ""
    """Why it is not, in a few words."""


class World(Protocol):
    """Tasks with their answers, split by a hash of the input."""

    name: str
    reads_tasks: bool
    """Whether `read` tells a well-formed task from another text; where not, any new line counts as one."""

    @property
    def types(self) -> tuple[str, ...]:
        """Every kind of task, in a fixed order."""

    def tasks(self, split: Split, n: int, seed: int, types: Sequence[str] | None = None) -> tuple[Task, ...]:
        """At most `n` tasks with inputs of their own, evenly over `types` (all when None); a function of the
        arguments. Fewer where there are no more."""

    def verify(self, task: Task, output: str) -> bool:
        """Whether a raw continuation is the task's right answer; `task.answer` must be known."""

    def read(self, text: str) -> Task | None:
        """The task that an instruction states; None where it is none of this world."""

    def is_held_out(self, task: Task) -> bool:
        """Whether the task belongs to the evaluation: no training data may contain it."""
