from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scaler_wizard.data.formats import Conversation, Message
from scaler_wizard.data.generators import SEEDLING_TASKS, sample_example
from scaler_wizard.errors import EmptyDataError
from scaler_wizard.evals.fakes import InductionModel, OracleModel, RandomModel
from scaler_wizard.evals.qa import cloze_questions, qa_probe
from scaler_wizard.evals.registry import PROBES
from scaler_wizard.evals.sanity import is_stuck, sanity_probe
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.tasks import (
    TaskRow,
    encode_prompt,
    normalise,
    row_from_conversation,
    row_from_example,
    task_probe,
)

SETTINGS = ProbeSettings(base_length=128, length=128, task_rows=30, max_answer_tokens=40)
END = 2


def test_qa_oracle_scores_one_and_random_scores_chance(tokenizer: Any, texts: list[str]) -> None:
    questions = cloze_questions(tokenizer, texts, SETTINGS)
    assert len(questions) == 10
    answers = {q.prompt: q.continuations[q.right] for q in questions}
    oracle = qa_probe(OracleModel(len(tokenizer), answers), tokenizer, texts, SETTINGS)
    assert (oracle.value, oracle.n, oracle.chance) == (1.0, 10, 0.25)

    many = replace(SETTINGS, questions=120)
    guesses = qa_probe(RandomModel(len(tokenizer)), tokenizer, texts, many)
    assert guesses.n == 120
    assert guesses.ci95[0] <= 0.25 <= guesses.ci95[1]
    assert 0.1 < guesses.baseline < 0.4


def test_questions_can_be_answered_from_their_passage_only(tokenizer: Any, texts: list[str]) -> None:
    for question in cloze_questions(tokenizer, texts, SETTINGS):
        passage = tokenizer.decode(question.prompt).lower()
        assert [word.lower() in passage for word in question.words] == [i == question.right for i in range(4)]
        assert len({len(ids) for ids in question.continuations}) == 1
        assert len(question.prompt) + len(question.continuations[0]) <= 128
    none = qa_probe(RandomModel(len(tokenizer)), tokenizer, ["two words"], SETTINGS)
    assert (none.value, none.n, none.questions) == (None, 0, ())


def test_generated_rows_oracle_scores_one_by_task(tokenizer: Any) -> None:
    forms: Any = ["document", "instruction", "question"]
    examples = [sample_example(task, 1, 3, split="held_out") for task in SEEDLING_TASKS]
    rows = [row_from_example(e, forms[i % 3]) for i, e in enumerate(examples)]
    answers = {
        tuple(encode_prompt(tokenizer, row.prompt)): (
            *tokenizer.encode(" " + row.reference, add_special_tokens=False),
            END,
        )
        for row in rows
    }
    oracle = task_probe(OracleModel(len(tokenizer), answers), tokenizer, rows, SETTINGS)
    assert oracle.value == oracle.ended.accuracy == 1.0
    assert set(oracle.by_task) == set(SEEDLING_TASKS)
    wrong = task_probe(RandomModel(len(tokenizer)), tokenizer, rows, SETTINGS)
    assert wrong.value == 0.0 == wrong.chance
    assert not any(wrong.correct)


def test_conversations_are_checked_by_normalised_exact_match(tokenizer: Any) -> None:
    def talk(answer: str) -> Conversation:
        return Conversation((Message("user", "capital of France?"), Message("assistant", answer)))

    row = row_from_conversation(talk("Paris."))
    assert row is not None
    assert row.is_right(' "PARIS"\n')
    assert not row.is_right("Paris, of course")
    assert row_from_conversation(talk("a" * 65)) is None
    assert row_from_conversation(talk("two\nlines")) is None
    assert row_from_conversation(talk(" . ")) is None
    assert row_from_conversation(Conversation((Message("user", "alone"),))) is None
    assert tokenizer.decode(encode_prompt(tokenizer, row.prompt)) == (
        "<|user|>capital of France?<|end|><|assistant|>"
    )


@pytest.mark.parametrize(("text", "expected"), [(" A  b\n", "a b"), ("'x.'", "x"), ("ﬁn", "fin")])
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_task_baseline_is_the_most_frequent_reference_and_rows_are_seeded(tokenizer: Any) -> None:
    rows = [TaskRow(f"q{i} =", "yes" if i % 4 else "no") for i in range(40)]
    small = replace(SETTINGS, task_rows=40)
    found = task_probe(RandomModel(len(tokenizer)), tokenizer, rows, small)
    assert found.baseline == 0.75
    one = task_probe(RandomModel(len(tokenizer)), tokenizer, rows, replace(small, task_rows=5))
    assert one.n == 5
    assert one == task_probe(RandomModel(len(tokenizer)), tokenizer, rows, replace(small, task_rows=5))
    with pytest.raises(EmptyDataError):
        task_probe(RandomModel(len(tokenizer)), tokenizer, [], SETTINGS)


def test_is_stuck_sees_loops_and_not_plain_lists() -> None:
    assert is_stuck([5] * 16)
    assert is_stuck([1, 2, 3, 4, 5] * 4)
    assert is_stuck([9, 8, *[1, 2] * 8, 7])
    assert not is_stuck([5] * 15)
    assert not is_stuck([1, 2, 3, 4, 5] * 3)
    assert not is_stuck(list(range(100)))


def test_sanity_tells_a_loop_an_empty_text_and_a_good_one(tokenizer: Any) -> None:
    prompts = ["the calm king", "the pale queen"]
    ids = [tuple(tokenizer.encode(prompt)) for prompt in prompts]
    text = (*tokenizer.encode(" greets the tall judge."), END)
    good = sanity_probe(OracleModel(len(tokenizer), dict.fromkeys(ids, text)), tokenizer, prompts, SETTINGS)
    assert good.passed
    assert (good.value, good.n) == (1.0, 4)
    assert [t["kind"] for t in good.texts] == ["greedy", "greedy", "sampled", "sampled"]
    assert good.texts[0]["text"] == " greets the tall judge."

    loop = sanity_probe(InductionModel(len(tokenizer)), tokenizer, ["go go"], SETTINGS, must_end=False)
    assert not loop.passed
    assert all(t["stuck"] and not t["ended"] for t in loop.texts)
    empty = sanity_probe(OracleModel(len(tokenizer), {}, otherwise=END), tokenizer, prompts, SETTINGS)
    assert [t["empty"] for t in empty.texts] == [True] * 4
    assert empty.value == 0.0


@pytest.mark.parametrize("length", [128, 160])
def test_registry_runs_every_probe_to_the_end(length: int, tokenizer: Any, texts: list[str]) -> None:
    settings = replace(SETTINGS, length=length, needles_per_depth=4, documents=4)
    given: Any = {"documents": texts, "rows": [TaskRow("a b", "c")], "prompts": ["a b"]}
    for name, probe in PROBES.items():
        calls: list[tuple[int, int]] = []
        model = InductionModel(len(tokenizer))
        found = probe.run(model, tokenizer, given[probe.inputs], settings, lambda *c, to=calls: to.append(c))
        record = found.as_dict()
        assert record["probe"] == name == found.probe
        assert calls[-1][0] == calls[-1][1] > 0
        assert calls == sorted(calls)
