"""Whether generated data may be trained on: shares of what goes wrong, over everything that was generated.

A gate looks at all rows, the rejected ones too: a filter that throws away nine of ten hides a generator that
does not work. Knows texts and counts; no model, no file. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scaler_wizard.data.diversity import Diversity, MadeTasks
from scaler_wizard.data.fingerprints import fingerprint, signature
from scaler_wizard.data.near import KnownTexts, NearDuplicates
from scaler_wizard.data.sentinels import SentinelReport, look_for_sentinels
from scaler_wizard.safety.checks import Check, Verdict, verdict_of

PILOT = 100
MAX_PERIOD = 48
MIN_REPEATS = 4
MIN_REPEATED_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class Generated:
    """One generated row, kept or not."""

    prompt: str
    """What was asked, without worked examples: they are equal in every row."""
    text: str
    """The whole continuation."""
    answer: str
    """What was cut out of it for training."""
    ended: bool
    """False where it reached the token limit."""
    kept: bool
    reason: str = ""
    """Why it was rejected; "" where it is kept."""


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """Shares that may not be exceeded (acceptance: undercut)."""

    runaway: float = 0.05
    token_limit: float = 0.10
    empty: float = 0.05
    near_duplicates: float = 0.10
    """Kept rows that nearly repeat another; not looked at where rows are alike by their form, see `tasks`."""
    variety: float = 0.5
    """Part of the world's variety that made tasks must have, see `Diversity.most_close`. Three runs of the
    demo had 0.71 to 1.0, the embedded model at a temperature of 0.2 has 0.4."""
    different_tasks: float = 0.95
    """Made tasks that repeat no other, of those asked for, at least."""
    acceptance: float = 0.50
    delimiters: tuple[str, ...] = ()
    """Texts that part one worked example from the next, and must not stand in an answer."""
    own_tokens: tuple[str, ...] = field(default=())
    """Special tokens of the base's tokenizer, as text."""


DEFAULT_LIMITS = GenerationLimits()


@dataclass(frozen=True, slots=True)
class GenerationReport:
    """The gate's verdict over one batch of generated rows, and its numbers."""

    verdict: Verdict
    n: int
    kept: int
    shares: Mapping[str, float]
    rejected: tuple[tuple[str, int], ...]
    """(reason, rows), the most frequent first."""
    sentinels: SentinelReport

    @property
    def passed(self) -> bool:
        """Whether the data may be trained on."""
        return self.verdict.passed

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            **self.verdict.as_dict(), "n": self.n, "kept": self.kept, "shares": dict(self.shares),
            "rejected": dict(self.rejected), "sentinels": self.sentinels.as_dict(),
        }  # fmt: skip


def judge_generation(
    rows: Sequence[Generated], evaluation: KnownTexts, limits: GenerationLimits = DEFAULT_LIMITS,
    tasks: MadeTasks | None = None,
) -> GenerationReport:  # fmt: skip
    """The gates over everything that was generated.

    Args:
        rows: all of them, rejected ones too.
        evaluation: prompts of every evaluation row, by `fingerprint(prompt)`.
        tasks: where rows are about tasks that the model made. Their wording is the stage's own and the same
            in every row, so the tasks are compared and not the rows.
    """
    kept = [row for row in rows if row.kept]
    shares = {
        "runaway": _part(sum(is_runaway(row.text, limits.delimiters) for row in rows), rows),
        "token_limit": _part(sum(not row.ended for row in rows), rows),
        "empty": _part(sum(not row.text.strip() for row in rows), rows),
        "acceptance": _part(len(kept), rows),
    }
    diversity = None if tasks is None else tasks.diversity()
    if diversity is None:
        shares["near_duplicates"] = _part(_near_duplicates(kept), kept)
    else:
        shares |= {
            "different_tasks": diversity.share_different, "close_tasks": diversity.close,
            "close_by_chance": diversity.by_chance,
        }  # fmt: skip
    counts = {
        "delimiter_leaks": sum(any(mark in row.answer for mark in limits.delimiters) for row in kept),
        "exact_duplicates": len(kept) - len({fingerprint(row.prompt, row.answer) for row in kept}),
        "evaluation_rows": sum(is_known(evaluation, row.prompt) for row in kept),
        "empty_answers": sum(not row.answer.strip() for row in kept),
    }
    sentinels = look_for_sentinels([row.answer for row in kept], limits.own_tokens)
    checks = _checks(shares, counts, sentinels, len(rows), len(kept), limits)
    verdict = verdict_of(checks | ({} if diversity is None else _task_checks(diversity, limits)))
    reasons = Counter(row.reason or "no reason given" for row in rows if not row.kept)
    return GenerationReport(
        verdict, len(rows), len(kept), shares | {name: _part(n, kept) for name, n in counts.items()},
        tuple(reasons.most_common()), sentinels,
    )  # fmt: skip


def _checks(
    shares: Mapping[str, float], counts: Mapping[str, int], sentinels: SentinelReport, n: int, kept: int,
    limits: GenerationLimits,
) -> dict[str, Check]:  # fmt: skip
    most = {
        "runaway": (limits.runaway, "runaway texts"),
        "token_limit": (limits.token_limit, "texts that reach the token limit"),
        "empty": (limits.empty, "empty texts"),
        "near_duplicates": (limits.near_duplicates, "kept rows nearly like another"),
    }
    checks = {"rows": Check(n, 1, n > 0, f"{n} rows were generated")}
    checks |= {
        name: Check(shares[name], limit, shares[name] < limit or shares[name] == 0,
            f"{words}: {shares[name]:.1%} (below {limit:.0%})")
        for name, (limit, words) in most.items()
        if name in shares
    }  # fmt: skip
    named = {
        "delimiter_leaks": "kept answers with a delimiter in them",
        "exact_duplicates": "kept rows that repeat another exactly",
        "evaluation_rows": "kept rows that ask an evaluation question",
        "empty_answers": "kept rows without an answer",
    }
    checks |= {
        name: Check(counts[name], 0, counts[name] == 0, f"{words}: {counts[name]} (none)")
        for name, words in named.items()
    }
    accepted = shares["acceptance"]
    checks["acceptance"] = Check(
        accepted, limits.acceptance, accepted >= limits.acceptance,
        f"kept {kept} of {n}: {accepted:.1%} (at least {limits.acceptance:.0%})",
    )  # fmt: skip
    checks["sentinels"] = Check(sentinels.with_tokens, 0, sentinels.clean, sentinels.words())
    return checks


def _task_checks(found: Diversity, limits: GenerationLimits) -> dict[str, Check]:
    """Whether made tasks are different ones: few repetitions, and not close more often than by chance."""
    different, close = found.share_different, found.close
    most = found.most_close(limits.variety, limits.near_duplicates)
    return {
        "different_tasks": Check(
            different, limits.different_tasks, different >= limits.different_tasks,
            f"{found.different} different tasks of {found.asked} asked for: {different:.1%} (at least "
            f"{limits.different_tasks:.0%})",
        ),
        "close_tasks": Check(
            close, most, close < most,
            f"tasks one word from another: {close:.1%} of {found.compared} (below {most:.1%}; by chance "
            f"{found.by_chance:.1%})",
        ),
    }  # fmt: skip


def is_runaway(text: str, delimiters: Sequence[str] = ()) -> bool:
    """Whether a text goes on past its end: it repeats itself, or goes through several delimiters.

    Repeating is a period of at most 48 characters, four times or more over at least 32 characters. One
    delimiter ends a few-shot answer; a second one means that the model went on inventing examples.
    """
    if sum(text.count(mark) for mark in delimiters) > 1:
        return True
    for period in range(1, min(MAX_PERIOD, len(text) // MIN_REPEATS) + 1):
        needed = max(MIN_REPEATS * period, MIN_REPEATED_CHARACTERS) - period
        run = 0
        for at in range(period, len(text)):
            run = run + 1 if text[at] == text[at - period] else 0
            if run >= needed:
                return True
    return False


def is_known(evaluation: KnownTexts, prompt: str) -> bool:
    """Whether an evaluation row asks this, or nearly this (similarity 0.8 of 8-byte shingles)."""
    return evaluation.holds(fingerprint(prompt)) or evaluation.resembles(signature(prompt))


def known_prompts(prompts: Sequence[str], *, near: bool = True) -> KnownTexts:
    """Evaluation prompts as `judge_generation` wants them."""
    known = KnownTexts(near=near)
    for prompt in prompts:
        known.add(fingerprint(prompt), prompt)
    return known


def _near_duplicates(rows: Sequence[Generated]) -> int:
    """Rows that are like an earlier one without being equal to it."""
    found: list[int] = []
    with NearDuplicates(lambda number, _: found.append(number)) as near:
        for number, row in enumerate(rows):
            near.add(number, fingerprint(row.prompt, row.answer), signature(f"{row.prompt}\n{row.answer}"))
        near.finish()
    return len(found)


def _part(count: int, rows: Sequence[Generated]) -> float:
    return count / len(rows) if rows else 0.0


def pilot_size(wanted: int, pilot: int = PILOT) -> int:
    """Rows to generate before the rest: 100, or a tenth where fewer than 1,000 are wanted, at least one."""
    return min(wanted, pilot if wanted >= 10 * pilot else max(1, wanted // 10))


def decide_pilot(report: GenerationReport, wanted: int) -> Verdict:
    """Whether the rest may be generated: the pilot passed every gate and was large enough."""
    need = pilot_size(wanted)
    size = Check(report.n, need, report.n >= need, f"a pilot of {report.n} rows (at least {need})")
    return verdict_of({"pilot": size, **report.verdict.checks})
