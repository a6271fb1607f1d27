"""The most recent of repeated assignments: does a longer context still prefer what was said last?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from scaler_wizard.data.generators.needles import NeedleExample, fact_line, recency_document
from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.evals.results import Proportion, RecencyResult
from scaler_wizard.evals.retrieval import (
    RetrievalItem,
    TextNeedles,
    generated_item,
    generated_values,
    predict_answers,
    right_answers,
    token_counter,
    uses_generated_world,
    wrong_answers,
)
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.tokenizing import Tokenizer


def recency_items(
    tokenizer: Tokenizer, texts: Sequence[str], settings: ProbeSettings
) -> tuple[list[RetrievalItem], list[tuple[int, ...]]]:
    """Twice `needles_per_depth` prompts, each with `settings.updates` values of one key, and all values."""
    n = 2 * settings.needles_per_depth
    if uses_generated_world(tokenizer, settings):
        count = token_counter(tokenizer)

        def build(i: int, room: int) -> NeedleExample:
            return recency_document(
                settings.rng("recency", settings.length, i),
                n_updates=settings.updates,
                n_tokens=room,
                count_tokens=count,
            )

        items = [
            generated_item(tokenizer, partial(build, i), settings.length, _earlier_values) for i in range(n)
        ]
        return items, generated_values(tokenizer)
    needles = TextNeedles(tokenizer, texts, settings)
    words = needles.statements
    items = []
    for i in range(n):
        rng = settings.rng("recency", settings.length, i)
        key = rng.randrange(len(words.keys))
        values = rng.sample(range(len(words.values)), settings.updates)
        depths = sorted(rng.random() for _ in values)
        stated = [(key, value, depth) for value, depth in zip(values, depths, strict=True)]
        items.append(needles.item(rng, key, values[-1], stated, depths[-1]))
    return items, list(words.values)


def _earlier_values(example: NeedleExample) -> list[str]:
    """Values that the asked key had before its last one in a generated document."""
    head, ending = fact_line(example.key, "\0").rstrip("\n").split("\0")
    lines = [line for line in example.prompt.splitlines() if line.startswith(head)]
    return [line.removeprefix(head).removesuffix(ending) for line in lines[:-1]]


def recency_probe(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    settings: ProbeSettings,
    on_progress: OnProgress = no_progress,
) -> RecencyResult:
    """Accuracy of answering with a key's latest value at `settings.length`.

    baseline: one over `settings.updates`, a reader who finds the key but not the order.
    chance: one over the number of values.
    """
    items, values = recency_items(tokenizer, documents, settings)
    answers = predict_answers(model, items, values, settings.scoring, on_progress)
    pooled = Proportion.of(right_answers(answers, items))
    chance = 1 / len(values)
    return RecencyResult(
        value=pooled.accuracy,
        n=pooled.n,
        ci95=pooled.ci95,
        baseline=1 / settings.updates,
        chance=chance,
        seed=settings.seed,
        length=settings.length,
        updates=settings.updates,
        pooled=pooled,
        stale=Proportion.of(wrong_answers(answers, items)),
        informative=pooled.above(chance),
    )
