"""Is the scorer itself right? Planted right and wrong answers, judged before it is trusted. Pure.

A published gain from 81% to 99.3% came from a scorer that failed every answer over 500 characters; recounted
it was 300 of 300 before and 298 of 300 after. So each right answer is planted with a wrong twin of the same
length: whoever judges by length alone gives both the same verdict and is wrong about one of them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from scaler_wizard.evals.statistics import wilson_interval
from scaler_wizard.safety.checks import Check, verdict_of

T = TypeVar("T")
PlantKind = Literal["right", "twin", "cut", "verbose", "off_topic", "refusal", "echo", "empty"]

REFUSAL = "I am sorry, but I cannot help with that."
LEAST_RIGHT = 20
QUARTERS = 4
MOST_ERRORS = 0.01
"""Share of planted answers that a scorer may misjudge on either side; an exact verifier misjudges none."""


@dataclass(frozen=True, slots=True)
class Planted(Generic[T]):
    """One answer of which we know whether it is right."""

    question: T
    answer: str
    right: bool
    kind: PlantKind


def plant(
    pairs: Sequence[tuple[T, str]], seed: int, *, echo: Callable[[T], str] | None = None, verbose: bool = True
) -> list[Planted[T]]:
    """Right answers, and for each a wrong one of the same length and wrong ones of other kinds.

    Args:
        pairs: questions with their right answer, over all lengths that will be scored.
        echo: the question's text, where repeating the question is to be planted as wrong.
        verbose: whether a right answer followed by other text counts as wrong.
    """
    rng = random.Random(seed)
    answers = [answer for _, answer in pairs]
    found: list[Planted[T]] = []
    for question, answer in pairs:
        others = [other for other in rng.sample(answers, min(8, len(answers))) if other != answer]
        wrong: list[tuple[PlantKind, str]] = [
            ("twin", _twin(answer, rng)), ("cut", answer[: len(answer) // 2].strip()), ("refusal", REFUSAL),
            ("empty", ""),
        ]  # fmt: skip
        wrong += [("off_topic", others[0])] if others else []
        wrong += [("verbose", f"{answer} {others[0]}")] if verbose and others else []
        wrong += [("echo", echo(question))] if echo else []
        found.append(Planted(question, answer, True, "right"))
        found += [Planted(question, text, False, kind) for kind, text in wrong if text != answer]
    return found


def _twin(answer: str, rng: random.Random) -> str:
    """A text of the same length, made of the same words where they can be told apart in another order."""
    words = answer.split(" ")
    if len(set(words)) > 1:
        twin = words
        while twin == words:
            twin = rng.sample(words, len(words))
        return " ".join(twin)
    at = rng.randrange(max(1, len(answer)))
    return answer[:at] + ("z" if answer[at : at + 1] != "z" else "x") + answer[at + 1 :]


@dataclass(frozen=True, slots=True)
class ScorerAudit:
    """What a scorer made of the planted answers."""

    trusted: bool
    reasons: tuple[str, ...]
    n_right: int
    n_wrong: int
    passed_right: int
    """Right answers that it passed."""
    passed_wrong: int
    """Wrong answers that it passed."""
    twins_told_apart: float
    """Share of right answers whose twin of equal length got the other verdict, the right one passing."""
    misjudged: tuple[tuple[str, int, int], ...]
    """(kind, misjudged, planted) of every kind."""
    by_length: tuple[tuple[int, int, int], ...]
    """(longest in characters, passed, planted) of the right answers, by quarters of their length."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "trusted": self.trusted, "reasons": list(self.reasons), "n_right": self.n_right,
            "n_wrong": self.n_wrong, "passed_right": self.passed_right, "passed_wrong": self.passed_wrong,
            "twins_told_apart": self.twins_told_apart, "misjudged": [list(row) for row in self.misjudged],
            "by_length": [list(row) for row in self.by_length],
        }  # fmt: skip


def audit_scorer(
    planted: Sequence[Planted[T]], scorer: Callable[[T, str], bool], *, most_errors: float = MOST_ERRORS
) -> ScorerAudit:
    """Judge the scorer: right answers pass at every length, wrong ones fail, twins are told apart.

    A scorer that raises on an answer would raise in the run too: the exception is let through.
    """
    verdicts = [bool(scorer(item.question, item.answer)) for item in planted]
    judged = list(zip(planted, verdicts, strict=True))
    right = [(item, verdict) for item, verdict in judged if item.right]
    wrong = [(item, verdict) for item, verdict in judged if not item.right]
    passed_right, passed_wrong = (sum(verdict for _, verdict in side) for side in (right, wrong))
    failed_right = len(right) - passed_right
    apart = _twins_told_apart(judged)
    quarters = _by_length([(len(item.answer), verdict) for item, verdict in right])
    counted = Counter(item.kind for item, _ in judged)
    missed = Counter(item.kind for item, verdict in judged if verdict != item.right)
    verdict = verdict_of(
        {
            "enough": Check(len(right), LEAST_RIGHT, min(len(right), len(wrong)) >= LEAST_RIGHT,
                f"{len(right)} right and {len(wrong)} wrong answers planted (at least {LEAST_RIGHT} each)"),
            "right": _share_check("right answers that fail", failed_right, len(right), most_errors),
            "wrong": _share_check("wrong answers that pass", passed_wrong, len(wrong), most_errors),
            "twins": Check(apart, 1 - most_errors, apart >= 1 - most_errors,
                f"{apart:.1%} of right answers are told from a wrong one of the same length"),
            "lengths": _length_check(quarters, most_errors),
        }
    )  # fmt: skip
    return ScorerAudit(
        verdict.passed, verdict.reasons, len(right), len(wrong), passed_right, passed_wrong, apart,
        tuple((kind, missed[kind], counted[kind]) for kind in sorted(counted)), quarters,
    )  # fmt: skip


def _share_check(what: str, count: int, n: int, limit: float) -> Check:
    share = count / n if n else 1.0
    low, high = wilson_interval(count, n)
    return Check(share, limit, share <= limit, f"{what}: {count} of {n} ({low:.1%} to {high:.1%})")


def _twins_told_apart(judged: Sequence[tuple[Planted[T], bool]]) -> float:
    """Right answer and twin stand next to each other, see `plant`."""
    apart = n = 0
    passed = False
    for item, verdict in judged:
        if item.kind == "right":
            passed = verdict
        elif item.kind == "twin":
            n += 1
            apart += passed and not verdict
    return apart / n if n else 0.0


def _by_length(rights: Iterable[tuple[int, bool]]) -> tuple[tuple[int, int, int], ...]:
    ordered = sorted(rights)
    edges = [round(len(ordered) * k / QUARTERS) for k in range(QUARTERS + 1)]
    parts = [ordered[edges[k] : edges[k + 1]] for k in range(QUARTERS)]
    return tuple((part[-1][0], sum(verdict for _, verdict in part), len(part)) for part in parts if part)


def _length_check(quarters: Sequence[tuple[int, int, int]], limit: float) -> Check:
    shares = [passed / n for _, passed, n in quarters]
    worst = min(shares, default=0.0)
    words = ", ".join(f"up to {longest}: {passed}/{n}" for longest, passed, n in quarters)
    return Check(worst, 1 - limit, worst >= 1 - limit, f"right answers passed by characters: {words}")
