"""Single-token needles at several depths of a document of a given length, against the truncated window.

The baseline is what a person gets without extending anything: the same prompts cut to their last
`base_length` tokens, question kept. A needle beyond that window cannot be found there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from scaler_wizard.data.generators.needles import needle_document
from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.evals.results import DepthAccuracy, NeedleResult, Proportion
from scaler_wizard.evals.retrieval import (
    RetrievalItem,
    TextNeedles,
    generated_item,
    generated_values,
    predict_whole_and_truncated,
    right_answers,
    token_counter,
    uses_generated_world,
)
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.tokenizing import Tokenizer


def needle_items(
    tokenizer: Tokenizer, texts: Sequence[str], settings: ProbeSettings
) -> tuple[list[RetrievalItem], list[tuple[int, ...]]]:
    """The prompts (needles_per_depth at each depth, in the order of the depths) and every possible value."""
    places = [(depth, i) for depth in settings.depths for i in range(settings.needles_per_depth)]
    if uses_generated_world(tokenizer, settings):
        count = token_counter(tokenizer)

        def generated(depth: float, i: int) -> RetrievalItem:
            return generated_item(
                tokenizer,
                lambda room: needle_document(
                    settings.rng("needle", settings.length, depth, i),
                    depth=depth,
                    n_tokens=room,
                    count_tokens=count,
                ),
                settings.length,
            )

        return [generated(depth, i) for depth, i in places], generated_values(tokenizer)
    needles = TextNeedles(tokenizer, texts, settings)
    n_keys, n_values = len(needles.statements.keys), len(needles.statements.values)
    items = []
    for depth, i in places:
        rng = settings.rng("needle", settings.length, depth, i)
        key, value = rng.randrange(n_keys), rng.randrange(n_values)
        items.append(needles.item(rng, key, value, [(key, value, depth)], depth))
    return items, list(needles.statements.values)


def needle_probe(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    settings: ProbeSettings,
    on_progress: OnProgress = no_progress,
) -> NeedleResult:
    """Accuracy of retrieving a needle, pooled and by depth, at `settings.length`.

    chance: one over the number of values, the score of a reader who knows the format but not the document.
    """
    items, values = needle_items(tokenizer, documents, settings)
    answers, truncated = predict_whole_and_truncated(model, tokenizer, items, values, settings, on_progress)
    found = right_answers(answers, items)
    chance = 1 / len(values)
    far = [i for i, item in enumerate(items) if item.distance + len(item.answer) > settings.base_length]
    per_depth = settings.needles_per_depth
    by_depth = tuple(
        DepthAccuracy(depth, Proportion.of(found[d * per_depth : (d + 1) * per_depth]))
        for d, depth in enumerate(settings.depths)
    )
    pooled = Proportion.of(found)
    return NeedleResult(
        value=pooled.accuracy,
        n=pooled.n,
        ci95=pooled.ci95,
        baseline=Proportion.of(truncated).accuracy,
        chance=chance,
        seed=settings.seed,
        length=settings.length,
        base_length=settings.base_length,
        style="generated" if uses_generated_world(tokenizer, settings) else "documents",
        scoring=settings.scoring,
        pooled=pooled,
        by_depth=by_depth,
        beyond=Proportion.of([found[i] for i in far]),
        truncated_beyond=Proportion.of([truncated[i] for i in far]),
        informative=pooled.above(chance),
    )
