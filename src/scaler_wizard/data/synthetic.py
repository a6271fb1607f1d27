"""Generated data sets for the embedded model: instructions it does not know yet, and long documents.

The seedling knows the tasks in document form only; these rows ask for them in chat form, so that what a
run gains is measured exactly. Torch-free; equal arguments give equal rows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice
from typing import Final

from scaler_wizard.data.corpus import documents
from scaler_wizard.data.generators import SEEDLING_TASKS, Example, retrieval_text, sample_example
from scaler_wizard.data.rows import Row

SYNTHETIC: Final = ("seedling",)
LEVELS: Final = (1, 2, 3)
HELD_OUT_EXAMPLES: Final = 400
LIBRARY_DOCUMENTS: Final = 160
# Whole modules reach 100,000 characters and would leave the retrieval documents a tenth of the tokens.
LIBRARY_CHARACTERS: Final = 3000
HELD_OUT_DOCUMENTS: Final = 60
RETRIEVAL_DOCUMENTS: Final = 600
# A retrieval line is 5 to 10 tokens of the seedling's tokenizer, 7 on average: documents must fill the
# target: a distance that no training document asks for is not learned (with 8, depth 0 was lost).
TOKENS_PER_LINE: Final = 7


@dataclass(frozen=True, slots=True)
class SyntheticRows:
    """See `dataset.Dataset`."""

    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    train_texts: tuple[str, ...]
    held_out_texts: tuple[str, ...]
    examples: tuple[Example, ...]


def seedling_rows(seed: int, count: int, target_context: int) -> SyntheticRows:
    """Instructions of every task at the easy levels, and texts: library text, tasks and retrieval documents.

    Args:
        count: training conversations.
        target_context: tokens the longest retrieval documents reach.
    """
    tasks = SEEDLING_TASKS
    train = tuple(
        _conversation(
            number,
            sample_example(tasks[number % len(tasks)], f"{seed}/{number}", _level(number), split="train"),
        )
        for number in range(1, count + 1)
    )
    examples = tuple(
        sample_example(tasks[number % len(tasks)], f"{seed}/{number}", _level(number), split="held_out")
        for number in range(HELD_OUT_EXAMPLES)
    )
    held_out = tuple(_conversation(number, example) for number, example in enumerate(examples, start=1))
    return SyntheticRows(train, held_out, _train_texts(seed, target_context), _held_out_texts(), examples)


def _level(number: int) -> int:
    return LEVELS[(number // len(SEEDLING_TASKS)) % len(LEVELS)]


def _conversation(number: int, example: Example) -> Row:
    turns = [
        {"role": "user", "content": example.instruction},
        {"role": "assistant", "content": example.answer},
    ]
    return Row(number, {"messages": turns})


def _train_texts(seed: int, target_context: int) -> tuple[str, ...]:
    """Library text, which the base knows, and retrieval documents of every length up to the target."""
    rng = random.Random(f"seedling-texts/{seed}")
    library = [
        document.text[:LIBRARY_CHARACTERS] for document in islice(documents("train"), LIBRARY_DOCUMENTS)
    ]
    most_lines = max(8, target_context // TOKENS_PER_LINE)
    retrieval = []
    for number in range(RETRIEVAL_DOCUMENTS):
        # Most fill the target context: only they ask for facts as far away as it reaches.
        shortest = most_lines // 4 if number % 3 == 0 else 7 * most_lines // 8
        n_lines = rng.randint(max(6, shortest), most_lines)
        n_queries = max(2, n_lines // 6)
        retrieval.append(retrieval_text(rng, n_lines=n_lines, n_queries=n_queries, update_share=0.3))
    texts = [*library, *retrieval]
    rng.shuffle(texts)
    return tuple(texts)


def _held_out_texts() -> tuple[str, ...]:
    return tuple(document.text for document in islice(documents("held_out"), HELD_OUT_DOCUMENTS))
