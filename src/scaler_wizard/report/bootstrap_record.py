"""The result of a `bootstrap` run as typed, harmless values: what its tables and pictures are made from.

result.json is a file that someone may have edited. The shape that is read here, all of it optional:

    base      {gaps {skill: GapProof}, audit ScorerAudit, sentinels, warnings, train, decision}
    stages    [{phase, stage, skill, attempt, passed, steps, replay, reasons, decision StageDecision,
                data {n, kept, shares, rejected, precision}, samples {skill: [sample]}}]
    stage 6   also: triple SafetyTriple, safety Verdict, violations [PrincipleCount],
                data {pairs {gated PairCounts, revision_always_wins PairCounts}, critic},
                critiques [{request, initial_answer, violated, critiques, revised_answer}],
                answered [{kind, request, before, after, expected, right}]
    gains     [Gain]
    retention [{stage, skill, right, n, ci95}]
    cost      Bill

The names in capitals are the dataclasses whose `as_dict` wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaler_wizard.report.record import Record
from scaler_wizard.report.values import Interval, interval, items, mapping, number, text, whole

MAX_STAGES = 40
MAX_TYPES = 60
MAX_SHOWN = 6


@dataclass(frozen=True)
class Side:
    """A share of n questions."""

    value: float | None
    n: int | None
    ci: Interval | None


@dataclass(frozen=True)
class Paired:
    """The same questions before and after, and the paired test."""

    name: str
    before: Side
    after: Side
    gained: int | None
    lost: int | None
    p: float | None
    """Adjusted where several were tested together."""
    h: float | None = None
    """Cohen's."""
    ok: bool | None = None
    """Whether a gate let it pass."""


@dataclass(frozen=True)
class Data:
    """What became of the rows that a stage generated."""

    n: int | None
    kept: int | None
    shares: Mapping[str, float]
    rejected: Mapping[str, int]
    right_before: float | None
    """Share of right rows before any was rejected, where somebody can tell."""
    right_kept: float | None


@dataclass(frozen=True)
class Attempt:
    """One attempt of a stage."""

    phase: str
    stage: int
    skill: str
    attempt: int
    passed: bool | None
    steps: int | None
    replay: float | None
    own: Side
    """All questions of the stage, after it."""
    correct: int | None
    share: float | None
    """What the lower bound had to reach."""
    required: int | None
    reasons: tuple[str, ...]
    types: tuple[Paired, ...]
    kept: tuple[Paired, ...]
    """Earlier stages: when they passed, and now."""
    data: Data | None


@dataclass(frozen=True)
class Safety:
    """The triple of the last stage, its principles and its pairs."""

    violated: Paired
    over_refused: Paired
    benign: Paired
    passed: bool | None
    reasons: tuple[str, ...]
    principles: tuple[Paired, ...]
    pairs: Mapping[str, Any]
    """Of the revisions, gated by the critic."""
    ungated: Mapping[str, Any]
    """If each revision had been preferred over its answer."""
    critic: Mapping[str, Any]


@dataclass(frozen=True)
class BootstrapRecord:
    """A bootstrap run's result."""

    attempts: tuple[Attempt, ...]
    retained: tuple[tuple[int, str, Side], ...]
    """(after which stage, skill, share right)."""
    gains: tuple[tuple[Paired, str], ...]
    """Against the best way of asking the base, with the label."""
    safety: Safety | None
    base: Mapping[str, Any]
    stopped: Mapping[str, Any]
    cost: Mapping[str, Any]
    seconds: float | None
    """From the run's beginning to its end, pauses and attempts that were killed included."""

    @property
    def passed(self) -> tuple[Attempt, ...]:
        """The attempts that the next stage built on."""
        return tuple(attempt for attempt in self.attempts if attempt.passed)


def bootstrap_record(record: Record) -> BootstrapRecord | None:
    """The record of a bootstrap run, None for any other."""
    result = record.result
    if result.get("recipe") != "bootstrap":
        return None
    stages = [mapping(row) for row in items(result.get("stages"))[:MAX_STAGES]]
    return BootstrapRecord(
        attempts=tuple(map(_attempt, stages)),
        retained=tuple(
            (whole(row.get("stage")) or 0, text(row.get("skill"), 40), _counted(row))
            for row in map(mapping, items(result.get("retention")))
            if text(row.get("skill"))
        ),
        gains=tuple(
            (_paired(row), text(row.get("label"), 40)) for row in map(mapping, items(result.get("gains")))
        ),
        safety=next((found for row in reversed(stages) if (found := _safety(row)) is not None), None),
        base=mapping(result.get("base")), stopped=mapping(result.get("stopped")),
        cost=mapping(result.get("cost")), seconds=number(result.get("seconds")),
    )  # fmt: skip


def shown_samples(record: Record) -> list[dict[str, str]]:
    """A few wrong and right answers of every attempt's own skill, and revisions, with words for each."""
    shown = []
    for row in map(mapping, items(record.result.get("stages"))[:MAX_STAGES]):
        phase, skill = text(row.get("phase"), 20), text(row.get("skill"), 40)
        found = [mapping(sample) for sample in items(mapping(row.get("samples")).get(skill))]
        for sample in [*found[: MAX_SHOWN // 2], *found[MAX_SHOWN // 2 :][-MAX_SHOWN // 2 :]]:
            verdict = "right" if sample.get("right") is True else "wrong"
            reason = text(sample.get("reason"), 200)
            expected = text(sample.get("expected"), 400)
            lines = [text(sample.get("answer"))]
            if verdict == "wrong" and (expected or reason):
                lines.append(
                    f"[{'; '.join(filter(None, (reason, f'expected: {expected}' * bool(expected))))}]"
                )
            shown.append(
                {"kind": f"{phase} {skill}, {verdict}", "prompt": text(sample.get("prompt")),
                 "text": "\n".join(lines)}
            )  # fmt: skip
        shown += [_revision(mapping(item)) for item in items(row.get("critiques"))[: 2 * MAX_SHOWN]]
        shown += [_answered(mapping(item)) for item in items(row.get("answered"))[: 2 * MAX_SHOWN]]
    return shown


def _revision(row: Mapping[str, Any]) -> dict[str, str]:
    lines = [f"answer: {text(row.get('initial_answer'))}"]
    lines += [f"critique: {said}" for item in items(row.get("critiques"))[:8] if (said := text(item))]
    lines.append(f"revision: {text(row.get('revised_answer'))}")
    violated = ", ".join(text(name, 60) for name in items(row.get("violated"))[:8])
    return {
        "kind": f"revision by {violated or 'the constitution'}", "prompt": text(row.get("request")),
        "text": "\n".join(lines),
    }  # fmt: skip


def _answered(row: Mapping[str, Any]) -> dict[str, str]:
    """A held-out request of stage 6, answered before and after."""
    named = (("before", "before"), ("after", "after"), ("keeps to the constitution", "expected"))
    return {
        "kind": f"{text(row.get('kind'), 40)} request, {'right' if row.get('right') is True else 'wrong'}",
        "prompt": text(row.get("request")),
        "text": "\n".join(f"{name}: {text(row.get(key))}" for name, key in named),
    }  # fmt: skip


def _attempt(row: Mapping[str, Any]) -> Attempt:
    decision = mapping(row.get("decision"))
    passed, data = row.get("passed"), mapping(row.get("data"))
    return Attempt(
        phase=text(row.get("phase"), 20), stage=whole(row.get("stage")) or 0,
        skill=text(row.get("skill"), 40), attempt=whole(row.get("attempt")) or 1,
        passed=passed if isinstance(passed, bool) else None,
        steps=whole(row.get("steps")), replay=number(row.get("replay")),
        own=Side(
            number(decision.get("accuracy")), whole(decision.get("n")), interval(decision.get("ci95"))
        ),
        correct=whole(decision.get("correct")), share=number(decision.get("share")),
        required=whole(decision.get("required")),
        reasons=tuple(text(reason, 400) for reason in items(row.get("reasons")) if text(reason)),
        types=_rows(decision.get("types")), kept=_rows(decision.get("kept")),
        data=_data(data) if data else None,
    )  # fmt: skip


def _rows(value: object) -> tuple[Paired, ...]:
    return tuple(_paired(mapping(row)) for row in items(value)[:MAX_TYPES])


def _paired(row: Mapping[str, Any]) -> Paired:
    adjusted = number(row.get("p_adjusted"))
    ok = row.get("ok")
    return Paired(
        text(row.get("name") or row.get("id") or row.get("stage"), 80), _side(row, "before"),
        _side(row, "after"),
        whole(row.get("gained")), whole(row.get("lost")),
        number(row.get("p_value")) if adjusted is None else adjusted, number(row.get("h")),
        ok if isinstance(ok, bool) else None,
    )  # fmt: skip


def _side(row: Mapping[str, Any], key: str) -> Side:
    side = mapping(row.get(key))
    return Side(number(side.get("value")), whole(side.get("n")), interval(side.get("ci95")))


def _counted(row: Mapping[str, Any]) -> Side:
    right, n = number(row.get("right")), whole(row.get("n"))
    value = right / n if right is not None and n else None
    return Side(value, n, interval(row.get("ci95")))


def _data(row: Mapping[str, Any]) -> Data:
    precision = mapping(row.get("precision"))
    shares = {text(name, 40): number(value) for name, value in mapping(row.get("shares")).items()}
    rejected = {
        text(name, 80): whole(value) for name, value in list(mapping(row.get("rejected")).items())[:12]
    }
    return Data(
        whole(row.get("n")), whole(row.get("kept")),
        {name: value for name, value in shares.items() if value is not None},
        {name: value for name, value in rejected.items() if value is not None},
        number(precision.get("before")), number(precision.get("kept")),
    )  # fmt: skip


def _safety(row: Mapping[str, Any]) -> Safety | None:
    triple, verdict, data = (mapping(row.get(key)) for key in ("triple", "safety", "data"))
    if not triple:
        return None
    passed, pairs = verdict.get("passed"), mapping(data.get("pairs"))
    return Safety(
        _paired(mapping(triple.get("violated"))), _paired(mapping(triple.get("over_refused"))),
        _paired(mapping(triple.get("benign_right"))), passed if isinstance(passed, bool) else None,
        tuple(text(reason, 400) for reason in items(verdict.get("reasons")) if text(reason)),
        _rows(row.get("violations")), mapping(pairs.get("gated")),
        mapping(pairs.get("revision_always_wins")), mapping(data.get("critic")),
    )  # fmt: skip
