"""Generated tasks with exact verifiers, one file per family, and single-token needles.

Every generator takes its own `random.Random`, so that a row is a function of its seed alone and a resumed
run repeats nothing and skips nothing. Torch-free.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, TypeAlias

from scaler_wizard.data.generators.arithmetic import add, subtract
from scaler_wizard.data.generators.binary import binary_add, binary_subtract, to_binary
from scaler_wizard.data.generators.desks import court, echo, rear, school
from scaler_wizard.data.generators.edits import append, remove, replace
from scaler_wizard.data.generators.example import (
    DIFFICULTIES,
    HELD_OUT_SHARE,
    MAX_LEVEL,
    MIN_LEVEL,
    Difficulty,
    Example,
    difficulty_of,
    first_answer,
    held_out,
    is_held_out_text,
    verify_answer,
)
from scaler_wizard.data.generators.needles import (
    NeedleExample,
    multi_key_needle,
    needle_document,
    recency_document,
    retrieval_text,
)
from scaler_wizard.data.generators.relations import stored_box, stored_jar, stored_keg, stored_net
from scaler_wizard.data.generators.sequences import copy, double, reverse, rotate, shift, sort, swap
from scaler_wizard.data.generators.skills import crew, orchestra, treasure, zoo
from scaler_wizard.data.generators.syllo import syllo
from scaler_wizard.data.generators.syllogisms import syllogism

Generator: TypeAlias = Callable[[random.Random, int], Example]

GENERATORS: Final[dict[str, Generator]] = {
    "copy": copy,
    "reverse": reverse,
    "sort": sort,
    "double": double,
    "shift": shift,
    "rotate": rotate,
    "swap": swap,
    "add": add,
    "subtract": subtract,
    "syllogism": syllogism,
    "replace": replace,
    "remove": remove,
    "append": append,
    "binary_add": binary_add,
    "binary_subtract": binary_subtract,
    "to_binary": to_binary,
    "syllo": syllo,
    "zoo": zoo,
    "treasure": treasure,
    "orchestra": orchestra,
    "crew": crew,
    "stored_box": stored_box,
    "stored_jar": stored_jar,
    "stored_net": stored_net,
    "stored_keg": stored_keg,
    "court": court,
    "school": school,
    "echo": echo,
    "rear": rear,
}

# For experts: no model knows them before it is taught, so that no general measurement asks for them.
LEXICAL_SKILLS: Final = ("zoo", "treasure", "orchestra", "crew")
RELATIONAL_SKILLS: Final = ("stored_box", "stored_jar", "stored_net", "stored_keg")
DESK_SKILLS: Final = ("court", "school", "echo", "rear")
EXPERT_SKILLS: Final = LEXICAL_SKILLS + RELATIONAL_SKILLS + DESK_SKILLS

# What the embedded model was built on and is measured with: later tasks must not change its numbers.
SEEDLING_TASKS: Final = (
    "copy", "reverse", "sort", "double", "shift", "rotate", "swap", "add", "subtract", "syllogism", "replace",
    "remove", "append",
)  # fmt: skip


def sample_example(task: str, seed: int | str, level: int, *, split: str) -> Example:
    """The example of `task` at `level` that `seed` names, from one side of the split.

    split: "train" or "held_out". Draws are repeated from the same generator until one falls on that side, so
    equal arguments give equal examples whatever was drawn before. Raises ValueError for any other split and
    KeyError for an unknown task.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f'split is {split!r}, expected "train" or "held_out"')
    rng = random.Random(f"{task}/{level}/{split}/{seed}")
    while True:
        example = GENERATORS[task](rng, level)
        if held_out(example) == (split == "held_out"):
            return example


__all__ = [
    "DESK_SKILLS",
    "DIFFICULTIES",
    "EXPERT_SKILLS",
    "GENERATORS",
    "HELD_OUT_SHARE",
    "LEXICAL_SKILLS",
    "MAX_LEVEL",
    "MIN_LEVEL",
    "RELATIONAL_SKILLS",
    "SEEDLING_TASKS",
    "Difficulty",
    "Example",
    "Generator",
    "NeedleExample",
    "difficulty_of",
    "first_answer",
    "held_out",
    "is_held_out_text",
    "multi_key_needle",
    "needle_document",
    "recency_document",
    "retrieval_text",
    "sample_example",
    "verify_answer",
]
