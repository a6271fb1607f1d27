"""The eval stage of `experts`: where inputs are routed, and what is answered in every setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from scaler_wizard.data.answers import normalise
from scaler_wizard.data.progress import OnProgress
from scaler_wizard.data.routing import RoutingRow, RoutingSet
from scaler_wizard.evals.routing import over_seeds, score_routing
from scaler_wizard.evals.worth import SETTINGS, WORDS, EndToEnd, Setting
from scaler_wizard.inference.experts.counters import Counters
from scaler_wizard.inference.experts.engine import routed_serving
from scaler_wizard.inference.experts.prompt import BASE, Prompt, RoutedAnswer
from scaler_wizard.inference.experts.routing import Router
from scaler_wizard.inference.experts.served import Served
from scaler_wizard.recipes.experts_routers import content_of
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.experts import ExpertsJob
from scaler_wizard.store.experts_bundle import MULTITASK

SHOWN = 12
AT_ONCE = 256
"""Requests in the engine at a time: progress is reported, and a person heard, after each group."""


def measured_rows(rows: Sequence[RoutingRow], labels: Sequence[str], most: int) -> list[RoutingRow]:
    """At most so many rows of each label, the first ones: the split's order is a hash's."""
    taken: Counter[str] = Counter()
    kept = []
    for row in rows:
        if taken[row.label] < most:
            taken[row.label] += 1
            kept.append(row)
    assert set(taken) <= set(labels)
    return kept


def route_rows(
    context: PhaseContext, served: Served, router: Router, prompts: Sequence[Prompt], words: str
) -> list[RoutedAnswer]:
    """Where a router sends each input; one token of the answer is generated, which costs next to nothing."""
    return answer_rows(served, router, prompts, 1, [None] * len(prompts), None, context.progress(words))


def answer_rows(
    served: Served, router: Router | None, prompts: Sequence[Prompt], max_new_tokens: int,
    experts: Sequence[str | None], fallback: str | None, report: OnProgress,
) -> list[RoutedAnswer]:  # fmt: skip
    """Answers in the order of the prompts.

    Args:
        experts: a label for each, `BASE`, or None: the router decides.
    """
    answers: list[RoutedAnswer] = []
    with routed_serving(served.bank, router, answer_start=served.answer_start, fallback=fallback) as engine:
        for first in range(0, len(prompts), AT_ONCE):
            group = list(zip(prompts[first : first + AT_ONCE], experts[first : first + AT_ONCE], strict=True))
            numbers = [engine.submit(served.request(prompt, max_new_tokens, who)) for prompt, who in group]
            found: dict[int, RoutedAnswer] = {}
            while engine.unfinished:
                found.update(engine.step())
                report(first + len(found), len(prompts))
            answers += [found[number] for number in numbers]
    return answers


def measure_routing(
    context: PhaseContext, served: Served, routers: Sequence[Router], rows: Sequence[RoutingRow],
) -> Metrics:  # fmt: skip
    """The first router on every row in full, and the accuracy of the others, trained with other seeds."""
    labels = routers[0].labels
    prompts = [content_of(served, row) for row in rows]
    truths = [row.label for row in rows]
    probabilities: list[list[list[float]]] = []
    counters = Counters()
    for number, router in enumerate(routers):
        answers = route_rows(
            context, served, router, prompts, f"routing, seed {number + 1} of {len(routers)}"
        )
        probabilities.append([list(answer.probabilities) for answer in answers])
        counters = sum((answer.counters for answer in answers), counters) if number == 0 else counters
    scores = [score_routing(labels, truths, found) for found in probabilities]
    return {
        **scores[0].as_dict(), "seeds": over_seeds([score.accuracy.value for score in scores]),
        "per_label": dict(Counter(truths)), "work": _per_input(counters, len(rows)),
    }  # fmt: skip


def _per_input(counters: Counters, n: int) -> dict[str, float]:
    return {name: value / n for name, value in asdict(counters).items()}


def measure_answers(
    context: PhaseContext,
    served: Served,
    router: Router,
    job: ExpertsJob,
    rows: Sequence[RoutingRow],
    majority: str,
) -> Metrics:
    """Every row answered in every setting: {right: {setting: [...]}, work, samples}; kept over a kill."""
    prompts = [content_of(served, row) for row in rows]
    fallback = MULTITASK if job.router.fallback == "multitask" else None
    who: dict[Setting, list[str | None]] = {
        "routed": [None] * len(rows), "oracle": [row.label for row in rows],
        "multitask": [MULTITASK] * len(rows), "base": [BASE] * len(rows), "majority": [majority] * len(rows),
    }  # fmt: skip

    def ask(setting: Setting) -> Metrics:
        report = context.progress(f"answers: {WORDS[setting]}")
        chosen = router if setting == "routed" else None
        most = job.evaluation.max_new_tokens
        answers = answer_rows(served, chosen, prompts, most, who[setting], fallback, report)
        texts = [served.text(answer) for answer in answers]
        right = [is_right(text, row.answer) for text, row in zip(texts, rows, strict=True)]
        work = _per_input(sum((answer.counters for answer in answers), Counters()), len(rows))
        return {"right": right, "work": work, "samples": _samples(rows, answers, texts, right)}

    found = {setting: context.once(f"answers {setting}", partial(ask, setting)) for setting in SETTINGS}
    return {
        "right": {setting: found[setting]["right"] for setting in SETTINGS},
        "labels": [row.label for row in rows],
        "work": {setting: found[setting]["work"] for setting in SETTINGS},
        "samples": found["routed"]["samples"],
    }


def end_to_end(answers: Metrics) -> EndToEnd:
    """The pairs that `worth` decides on."""
    return EndToEnd({setting: tuple(answers["right"][setting]) for setting in SETTINGS})


def majority_label(rows: RoutingSet) -> str:
    """The expert with most training rows; the first of equals."""
    counts = Counter(row.label for row in rows.train)
    return max(rows.labels, key=lambda label: counts[label])


def is_right(answer: str, reference: str) -> bool:
    """Whether the answer's first line is the reference, after normalisation."""
    first = answer.strip().split("\n", 1)[0] if "\n" not in reference.strip() else answer
    return normalise(first) == normalise(reference)


def _samples(
    rows: Sequence[RoutingRow], answers: Sequence[RoutedAnswer], texts: Sequence[str], right: Sequence[bool]
) -> list[dict[str, Any]]:
    """The first wrong ones, then right ones."""
    order = sorted(range(len(rows)), key=lambda i: (right[i], i))[:SHOWN]
    return [
        {
            "prompt": rows[i].prompt[:500], "expected": rows[i].answer[:500], "answer": texts[i][:500],
            "label": rows[i].label, "expert": answers[i].expert, "confidence": answers[i].confidence,
            "abstained": answers[i].abstained, "right": right[i],
        }
        for i in order
    ]  # fmt: skip
