"""Several needles of the same form in one document, one of them asked for (RULER, arXiv:2404.06654)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from scaler_wizard.data.generators.needles import NeedleExample, fact_line, multi_key_needle
from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.evals.results import MultiKeyResult, Proportion
from scaler_wizard.evals.retrieval import (
    RetrievalItem,
    TextNeedles,
    generated_item,
    generated_values,
    predict_whole_and_truncated,
    right_answers,
    token_counter,
    too_short,
    uses_generated_world,
    wrong_answers,
)
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.tokenizing import Tokenizer

_FACT_OPENING = fact_line("key", "value").split()[0]


def multi_key_items(
    tokenizer: Tokenizer, texts: Sequence[str], settings: ProbeSettings
) -> tuple[list[RetrievalItem], list[tuple[int, ...]]]:
    """Twice `needles_per_depth` prompts, the asked key's place spread evenly, and every possible value."""
    n = 2 * settings.needles_per_depth
    asked = [i % settings.keys for i in range(n)]
    if uses_generated_world(tokenizer, settings):
        count = token_counter(tokenizer)

        def build(i: int, room: int) -> NeedleExample:
            try:
                return multi_key_needle(
                    settings.rng("multi_key", settings.length, i),
                    n_keys=settings.keys,
                    depth=asked[i] / max(1, settings.keys - 1),
                    n_tokens=room,
                    count_tokens=count,
                )
            except ValueError:
                # The generator's only complaint left: the facts alone are longer than the room.
                raise too_short(settings.length, settings.length + 1) from None

        items = [
            generated_item(tokenizer, partial(build, i), settings.length, _other_values) for i in range(n)
        ]
        return items, generated_values(tokenizer)
    needles = TextNeedles(tokenizer, texts, settings)
    words = needles.statements
    items = []
    for i in range(n):
        rng = settings.rng("multi_key", settings.length, i)
        keys = rng.sample(range(len(words.keys)), settings.keys)
        values = rng.sample(range(len(words.values)), settings.keys)
        depths = sorted(rng.random() for _ in keys)
        stated = list(zip(keys, values, depths, strict=True))
        key, value, depth = stated[asked[i]]
        items.append(needles.item(rng, key, value, stated, depth))
    return items, list(words.values)


def _other_values(example: NeedleExample) -> list[str]:
    """Values of the other facts in a generated document."""
    words = [line.replace(":", " ").replace(".", " ").split() for line in example.prompt.splitlines()]
    facts = [tuple(line[1:]) for line in words if len(line) == 3 and line[0] == _FACT_OPENING]
    return [value for key, value in facts if key != example.key and value != example.answer]


def multi_key_probe(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    settings: ProbeSettings,
    on_progress: OnProgress = no_progress,
) -> MultiKeyResult:
    """Accuracy of retrieving the asked one of `settings.keys` needles at `settings.length`."""
    items, values = multi_key_items(tokenizer, documents, settings)
    answers, truncated = predict_whole_and_truncated(model, tokenizer, items, values, settings, on_progress)
    pooled, chance = Proportion.of(right_answers(answers, items)), 1 / len(values)
    return MultiKeyResult(
        value=pooled.accuracy,
        n=pooled.n,
        ci95=pooled.ci95,
        baseline=Proportion.of(truncated).accuracy,
        chance=chance,
        seed=settings.seed,
        length=settings.length,
        base_length=settings.base_length,
        keys=settings.keys,
        pooled=pooled,
        other_key=Proportion.of(wrong_answers(answers, items)),
        informative=pooled.above(chance),
    )
