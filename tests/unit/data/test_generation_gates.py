"""Each gate on generated data bites on the fault it was made for, and on nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from scaler_wizard.data.corpus import documents
from scaler_wizard.data.generation_gates import (
    Generated,
    GenerationLimits,
    decide_pilot,
    is_runaway,
    judge_generation,
    known_prompts,
    pilot_size,
)
from scaler_wizard.data.generators import sample_example

LIMITS = GenerationLimits(delimiters=("###",))
NOTHING = known_prompts([])


def good(n: int = 100) -> list[Generated]:
    examples = [sample_example("reverse", k, 1 + k % 10, split="train") for k in range(4 * n)]
    unique = list({example.input: example for example in examples}.values())[:n]
    assert len(unique) == n
    return [Generated(e.instruction, f" {e.answer}\n###\n", e.answer, ended=True, kept=True) for e in unique]


def failed(rows: list[Generated], limits: GenerationLimits = LIMITS) -> list[str]:
    report = judge_generation(rows, NOTHING, limits)
    assert report.passed == all(check.ok for check in report.verdict.checks.values())
    return [name for name, check in report.verdict.checks.items() if not check.ok]


def spoil(rows: list[Generated], count: int, **changes: object) -> list[Generated]:
    return [replace(row, **changes) if k < count else row for k, row in enumerate(rows)]  # type: ignore[arg-type]


def test_good_data_passes() -> None:
    report = judge_generation(good(), NOTHING, LIMITS)
    assert report.passed, report.verdict.reasons
    assert json.loads(json.dumps(report.as_dict()))["passed"] is True


LOOP = "a b a b a b a b a b a b a b a b a b a b a b a b"
INVENTED = " a b\n###\nReverse: x y\n###\nReverse: v w"


@pytest.mark.parametrize(
    ("count", "changes", "gate"),
    [
        (4, {"text": LOOP}, None), (5, {"text": LOOP}, "runaway"), (5, {"text": INVENTED}, "runaway"),
        (9, {"ended": False}, None), (10, {"ended": False}, "token_limit"),
        (4, {"text": "", "kept": False, "reason": "empty"}, None),
        (5, {"text": "", "kept": False, "reason": "empty"}, "empty"),
        (50, {"kept": False, "reason": "critic"}, None),
        (51, {"kept": False, "reason": "critic"}, "acceptance"),
        (1, {"answer": "a ### b"}, "delimiter_leaks"), (1, {"answer": " "}, "empty_answers"),
        (1, {"answer": "a <|assistant|> b"}, "sentinels"),
        (3, {"answer": "As an AI, a b"}, "sentinels"),
    ],
)  # fmt: skip
def test_one_fault_fails_one_gate(count: int, changes: dict[str, object], gate: str | None) -> None:
    assert failed(spoil(good(), count, **changes)) == ([gate] if gate else [])


def test_exact_and_near_repeats() -> None:
    rows = good()
    assert failed([*rows, rows[0]]) == ["exact_duplicates"]
    text = next(iter(documents("train"))).text[:600]
    long = [f"{text} {k}" for k in range(20)]
    near = [Generated("Copy this", text, text, True, True) for text in long]
    assert "near_duplicates" in failed([*rows, *near])


def test_a_kept_row_that_asks_an_evaluation_question_fails() -> None:
    rows = good()
    leaked = judge_generation(rows, known_prompts([f" {rows[7].prompt} "]), LIMITS)
    assert [n for n, c in leaked.verdict.checks.items() if not c.ok] == ["evaluation_rows"]
    rejected = spoil(rows, 8, kept=False, reason="evaluation row")
    assert judge_generation(rejected, known_prompts([rows[7].prompt]), LIMITS).passed


def test_nothing_generated_and_everything_empty_fail() -> None:
    """Continuous batching that failed comes back empty without an exception."""
    assert not judge_generation([], NOTHING).passed
    assert {"empty", "empty_answers"} <= set(failed(spoil(good(), 100, text="", answer="")))


def test_a_long_answer_is_no_runaway() -> None:
    assert not is_runaway("the quick brown fox jumps over the lazy dog and then goes home to sleep " * 2)
    assert not is_runaway("1000000 + 1 = 1000001")
    assert is_runaway("ha" * 30)


def test_the_pilot_comes_first() -> None:
    assert [pilot_size(n) for n in (1, 30, 900, 1000, 50_000)] == [1, 3, 90, 100, 100]
    passed = judge_generation(good(), NOTHING, LIMITS)
    assert decide_pilot(passed, 1000).passed
    assert not decide_pilot(judge_generation(good(99), NOTHING, LIMITS), 1000).passed
    broken = judge_generation(spoil(good(), 10, ended=False), NOTHING, LIMITS)
    assert not decide_pilot(broken, 1000).passed
