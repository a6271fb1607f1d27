"""Two-step syllogisms with distracting premises.

"all elk are fig; all fig are oak; so all elk are" continues with " oak". Levels 1 to 3 have no distractor,
4 to 6 one, 7 to 9 two and 10 three, each an unrelated premise over other words. From level 6 on the premises
come in random order. The answer must be chained: no premise states it.
"""

from __future__ import annotations

import random

from scaler_wizard.data.generators.example import Example, check_level
from scaler_wizard.data.generators.words import VALUES


def syllogism(rng: random.Random, level: int) -> Example:
    """What follows from two chained premises among `(level - 1) // 3` unrelated ones."""
    check_level(level)
    n_distractors = (level - 1) // 3
    words = rng.sample(VALUES, 3 + 2 * n_distractors)
    subject, middle, predicate = words[:3]
    pairs = [(subject, middle), (middle, predicate)]
    pairs.extend(zip(words[3::2], words[4::2], strict=True))
    if level >= 6:
        rng.shuffle(pairs)
    premises = "; ".join(f"all {a} are {b}" for a, b in pairs)
    instructions = (f"Conclude about {subject}: {premises}", f"Draw the conclusion for {subject}: {premises}")
    questions = (
        f"If {premises}, what are all {subject}?",
        f"Given that {premises}, what is every {subject} in the end?",
    )
    return Example(
        task="syllogism",
        level=level,
        input=f"{premises}; {subject}",
        answer=predicate,
        document=f"{premises}; so all {subject} are",
        instruction=rng.choice(instructions),
        question=rng.choice(questions),
    )
