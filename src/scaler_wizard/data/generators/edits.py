"""Small edits of a letter sequence: replace one letter, remove one letter, append one letter.

Document form: `replace d with q in [ a d c ] =`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from scaler_wizard.data.generators.example import Example
from scaler_wizard.data.generators.sequences import sample_letters
from scaler_wizard.data.generators.words import LETTERS


def edited(task: str, letters: Sequence[str], named: Sequence[str]) -> list[str]:
    """What an edit makes of its letters; `named` are the letters that its instruction names, in order."""
    if task == "append":
        return [*letters, named[0]]
    if task == "remove":
        return [letter for letter in letters if letter != named[0]]
    old, new = named
    return [new if letter == old else letter for letter in letters]


def replace(rng: random.Random, level: int) -> Example:
    """One letter of the sequence replaced by a letter that does not occur in it."""
    letters = sample_letters(rng, level)
    old = rng.choice(letters)
    new = rng.choice([letter for letter in LETTERS if letter not in letters])
    text = " ".join(letters)
    instructions = (f"Replace {old} with {new}: {text}", f"Change {old} to {new}: {text}")
    questions = (f"What is {text} if {old} is {new}?", f"How does {text} look with {new} instead of {old}?")
    return Example(
        task="replace",
        level=level,
        input=f"{old} {new} {text}",
        answer=" ".join(edited("replace", letters, (old, new))),
        document=f"replace {old} with {new} in [ {text} ] =",
        instruction=rng.choice(instructions),
        question=rng.choice(questions),
    )


def remove(rng: random.Random, level: int) -> Example:
    """One letter of the sequence left out."""
    letters = sample_letters(rng, level)
    old = rng.choice(letters)
    text = " ".join(letters)
    instructions = (f"Remove {old}: {text}", f"Delete {old}: {text}", f"Leave out {old}: {text}")
    questions = (f"What is left of {text} without {old}?", f"If {old} goes, what remains of {text}?")
    return Example(
        task="remove",
        level=level,
        input=f"{old} {text}",
        answer=" ".join(edited("remove", letters, (old,))),
        document=f"remove {old} from [ {text} ] =",
        instruction=rng.choice(instructions),
        question=rng.choice(questions),
    )


def append(rng: random.Random, level: int) -> Example:
    """A letter that does not occur in the sequence put at its end."""
    letters = sample_letters(rng, level)
    new = rng.choice([letter for letter in LETTERS if letter not in letters])
    text = " ".join(letters)
    instructions = (f"Append {new}: {text}", f"Put {new} at the end: {text}", f"Finish with {new}: {text}")
    questions = (f"What is {text} followed by {new}?", f"If {new} joins {text} last, what do you get?")
    return Example(
        task="append",
        level=level,
        input=f"{new} {text}",
        answer=" ".join(edited("append", letters, (new,))),
        document=f"append {new} to [ {text} ] =",
        instruction=rng.choice(instructions),
        question=rng.choice(questions),
    )
