"""What the embedded model reads while it is pretrained: rows of generated tasks and text, and all settings.

Each row is a function of (seed, step, row) alone.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from transformers import PreTrainedTokenizerFast

from scaler_wizard.data.generators import (
    MAX_LEVEL,
    MIN_LEVEL,
    SEEDLING_TASKS,
    recency_document,
    retrieval_text,
    sample_example,
)
from seedling_evaluation import encode

# Second stage, levels 1 to 10: what is short is learned first.
LEVEL_WEIGHTS = (4, 4, 4, 2, 2, 1, 1, 1, 1, 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    steps: int = 320
    rows_per_step: int = 32
    # Second stage: half the rows in a step, so that the same tokens give twice the updates.
    task_steps: int = 2400
    task_rows_per_step: int = 16
    task_decay_steps: int = 100
    window: int = 128
    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 384
    n_layers: int = 4
    # Two heads: with one, needles come as soon, but reversing, sorting and swapping were not learned.
    n_heads: int = 2
    rope_theta: float = 10_000.0
    # 0.02 blocks induction at this width.
    initializer_range: float = 0.06
    learning_rate: float = 2e-3
    warmup_steps: int = 10
    weight_decay: float = 0.1
    corpus_chars: int = 3_000_000
    threads: int = 1


class Rows:
    """Pretraining rows of exactly `window` tokens, each a function of (seed, step, row) alone."""

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, corpus_tokens: list[list[int]]
    ) -> None:
        self.recipe, self.tokenizer, self.corpus_tokens = recipe, tokenizer, corpus_tokens
        self.offsets = [0]
        for tokens in corpus_tokens:
            self.offsets.append(self.offsets[-1] + len(tokens))

    def encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text)

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def excerpt(self, rng: random.Random, length: int) -> list[int]:
        """`length` contiguous tokens of one corpus document, or all of it and an end-of-text token."""
        (tokens,) = rng.choices(self.corpus_tokens, cum_weights=self.offsets[1:])
        start = rng.randrange(max(1, len(tokens) - length // 2))
        return [*tokens[start:], self.tokenizer.eos_token_id][:length]

    def retrieval(self, rng: random.Random, *, n_queries: int, n_tokens: int) -> list[int]:
        """One retrieval document of nearly `n_tokens` tokens."""
        text = retrieval_text(
            rng, n_queries=n_queries, n_tokens=n_tokens, count_tokens=self.count, update_share=0.2
        )
        return [self.tokenizer.bos_token_id, *self.encode(text), self.tokenizer.eos_token_id]

    def document(self, rng: random.Random) -> list[int]:
        """A generated task of the train split, or a short retrieval text; half of them open with <|bos|>."""
        if rng.random() < 0.2:
            text = retrieval_text(
                rng, n_queries=rng.randint(1, 3), n_lines=rng.randint(2, 8), update_share=0.2
            )
        else:
            task = rng.choice(SEEDLING_TASKS)
            text = sample_example(task, rng.getrandbits(64), rng.randint(1, 10), split="train").document_text
        opening = [self.tokenizer.bos_token_id] if rng.random() < 0.5 else []
        return [*opening, *self.encode(text), self.tokenizer.eos_token_id]

    def row(self, step: int, index: int) -> list[int]:
        """First stage: 30% corpus, 35% packed tasks, 30% whole-window needles, 5% repeated passages."""
        recipe = self.recipe
        rng = random.Random(f"{recipe.seed}/{step}/{index}")
        draw = rng.random()
        if draw < 0.30:
            row = self.excerpt(rng, recipe.window)
        elif draw < 0.65:
            row = self.packed(rng, self.document)
        elif draw < 0.95:
            n_tokens = recipe.window - rng.randint(2, 20)
            row = self.retrieval(rng, n_tokens=n_tokens, n_queries=rng.randint(1, 13))
        else:
            passage = self.excerpt(rng, rng.randint(16, 48))
            row = [*passage, *self.excerpt(rng, rng.randint(4, recipe.window - 2 * len(passage))), *passage]
        while len(row) < recipe.window:
            row.extend(self.document(rng))
        return row[: recipe.window]

    def packed(self, rng: random.Random, make: Callable[[random.Random], list[int]]) -> list[int]:
        """Documents in turn; a random cut into the first spreads lines evenly over the positions."""
        first = make(rng)
        row = first[rng.randrange(len(first)) :]
        while len(row) < self.recipe.window:
            row.extend(make(rng))
        return row

    def exercise(self, rng: random.Random) -> list[int]:
        """A generated task of the train split, mostly of an easy level."""
        (level,) = rng.choices(range(MIN_LEVEL, MAX_LEVEL + 1), weights=LEVEL_WEIGHTS)
        task = rng.choice(SEEDLING_TASKS)
        text = sample_example(task, rng.getrandbits(64), level, split="train").document_text
        opening = [self.tokenizer.bos_token_id] if rng.random() < 0.5 else []
        return [*opening, *self.encode(text), self.tokenizer.eos_token_id]

    def update(self, rng: random.Random) -> list[int]:
        """A short document that states one key twice and asks for it."""
        text = recency_document(rng, n_lines=rng.randint(4, 14)).text
        return [self.tokenizer.bos_token_id, *self.encode(text), self.tokenizer.eos_token_id]

    def task_row(self, step: int, index: int) -> list[int]:
        """Second stage: 14% corpus, 8% whole-window needles, 8% packed updates, 70% packed tasks."""
        window = self.recipe.window
        rng = random.Random(f"{self.recipe.seed}/tasks/{step}/{index}")
        draw = rng.random()
        if draw < 0.14:
            # Where a document ends early, one exercise is repeated up to the window's end.
            row = [*self.excerpt(rng, window), *self.exercise(rng) * window]
        elif draw < 0.22:
            n_queries = rng.randint(1, 13)
            row = self.retrieval(rng, n_queries=n_queries, n_tokens=window - rng.randint(2, 20))
        else:
            row = self.packed(rng, self.update if draw < 0.30 else self.exercise)
        while len(row) < window:
            row.extend(self.exercise(rng))
        return row[:window]
