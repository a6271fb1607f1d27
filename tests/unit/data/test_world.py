"""The embedded world, its questions, and a person's own prompts."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.data.generators import sample_example
from scaler_wizard.data.world import SKILLS
from scaler_wizard.data.world_embedded import LETTER_TASKS, EmbeddedWorld
from scaler_wizard.data.world_file import FileWorld
from scaler_wizard.data.world_forms import judgement, judgements, read_verdict, wrong_answer
from scaler_wizard.data.world_questions import check, made_task, questions
from scaler_wizard.data.worlds import open_world
from scaler_wizard.errors import DataError, EmptyDataError, RowError, SpecError
from scaler_wizard.specs.bootstrap import BootstrapJob

WORLD = EmbeddedWorld()


def write_prompts(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompts(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"instruction": f"Say the number {number} backwards.", "answer": str(number)[::-1], **changes}
        for number in range(1000, 1000 + count)
    ]


@pytest.mark.parametrize("kind", LETTER_TASKS)
def test_instructions_are_read_back_as_the_task_they_state(kind: str) -> None:
    tasks = WORLD.tasks("train", 40, 0, [kind])
    assert len(tasks) == 40
    for task in tasks:
        read = WORLD.read(task.explicit)
        assert read is not None
        assert (read.type, read.input, read.document, read.answer) == (
            task.type, task.input, task.document, task.answer,
        )  # fmt: skip


def test_tasks_are_the_generators_and_split_by_input() -> None:
    train, held_out = WORLD.tasks("train", 300, 0), WORLD.tasks("held_out", 300, 0)
    assert not {task.input for task in train} & {task.input for task in held_out}
    assert all(WORLD.is_held_out(task) for task in held_out)
    assert not any(WORLD.is_held_out(task) for task in train)
    assert set(Counter(task.type for task in train).values()) == {30}
    assert WORLD.tasks("train", 300, 0) == train
    assert WORLD.tasks("train", 300, 1) != train
    first = sample_example("copy", "world/0/0", 1, split="train")
    assert train[0].explicit == first.instruction
    assert WORLD.verify(train[0], f" {first.answer}\nmore")
    assert not WORLD.verify(train[0], f"{first.answer} x")


@pytest.mark.parametrize(
    "text", ["Reverse a b c", "Reverse: a", "Reverse: A B C", "Fly: a b c", "Remove x: a b c",
             "Append a: a b c", "Replace a with b: a b c", "", ": a b c", "Reverse: a b c = c b a",
             "Sort: " + "a " * 11],
)  # fmt: skip
def test_what_is_no_task_is_not_read(text: str) -> None:
    assert WORLD.read(text) is None


def test_only_the_types_of_a_world_are_its_tasks() -> None:
    small = EmbeddedWorld(["copy"], [1])
    assert small.read("Reverse: a b c") is None
    assert {task.type for task in small.tasks("train", 20, 0)} == {"copy"}
    with pytest.raises(ValueError, match="fly"):
        EmbeddedWorld(["fly"])


@pytest.mark.parametrize("skill", SKILLS)
def test_a_right_reply_passes_and_a_wrong_one_does_not(skill: Any) -> None:
    asked = questions(WORLD, skill, 60, 7)
    assert len(asked) == 60
    assert asked == questions(WORLD, skill, 60, 7)
    for question in asked:
        assert check(WORLD, question, question.replies).right
        assert not check(WORLD, question, [""] * len(question.prompts)).right
        assert not check(WORLD, question, ["I cannot do that."] * len(question.prompts)).right
    assert {WORLD.is_held_out(question.task) for question in asked} == {True}


def test_judging_is_asked_in_both_orders_and_always_saying_yes_is_no_judge() -> None:
    asked = questions(WORLD, "evaluate", 400, 0)
    pairs = [question for question in asked if len(question.prompts) == 2]
    assert len(pairs) == 200
    for label in ("A", "B"):
        assert not any(check(WORLD, question, [f"x, {label}"] * 2).right for question in pairs)
    single = [question for question in asked if len(question.prompts) == 1]
    yes = sum(check(WORLD, question, ["x, yes"]).right for question in single)
    assert yes == 100


def test_half_of_what_is_to_be_mended_is_right() -> None:
    kinds = Counter(question.kind == "right" for question in questions(WORLD, "revise", 400, 0))
    assert kinds == {True: 200, False: 200}


def test_a_made_task_is_new_and_of_its_type() -> None:
    assert made_task(WORLD, "reverse", " Reverse: a b c\n").right
    assert not made_task(WORLD, "copy", "Reverse: a b c").right
    assert not made_task(WORLD, "reverse", "Reverse: a b c", known={"Reverse: a b c"}).right
    assert not made_task(WORLD, "reverse", "Reverse: a b c", given={"Reverse: a b c"}).right


def test_wrong_answers_are_wrong_in_several_ways() -> None:
    kinds = set()
    for number, task in enumerate(WORLD.tasks("train", 200, 0)):
        assert task.answer is not None
        kind, text = wrong_answer(random.Random(number), task.answer, task)
        assert text != task.answer
        kinds.add(kind)
    assert kinds == {"incorrect", "format", "off_topic", "verbose", "refusal"}


@pytest.mark.parametrize(
    ("draft", "seen"),
    [("c b a", "c c b b a a . ."), ("c x a", "c c b x"), ("c b", "c c b b a ."),
     ("c b a d", "c c b b a a . d"), ("I cannot do that.", "c I")],
)  # fmt: skip
def test_a_judge_lays_the_draft_beside_its_own_answer_until_they_differ(draft: str, seen: str) -> None:
    assert judgement("c b a", draft, "yes") == f"{seen}, yes"


def test_a_draft_is_judged_alone_and_in_both_orders() -> None:
    (task,) = WORLD.tasks("train", 1, 0, ["copy"])
    asked = judgements(task, "a b c", "a c b", "incorrect")
    assert [(read_verdict(reply), kind) for _, reply, kind in asked] == [
        ("no", "incorrect"), ("yes", "right"), ("A", "incorrect"), ("B", "incorrect"),
    ]  # fmt: skip
    assert [prompt.partition(task.explicit)[2] for prompt, _, _ in asked] == [
        " = a c b", " = a b c", " A = a b c B = a c b", " A = a c b B = a b c",
    ]  # fmt: skip


def test_a_verdict_is_read_as_it_is_written() -> None:
    assert read_verdict(" " + judgement("c b a", "c b", "no") + "\nyes") == "no"
    assert read_verdict("c b a, perhaps") == ""
    assert read_verdict("yes") == "yes"


def test_a_judge_that_compares_rightly_is_right() -> None:
    for question in questions(WORLD, "evaluate", 40, 0):
        assert check(WORLD, question, question.replies).right
        for prompt, reply, draft in zip(question.prompts, question.replies, question.compared, strict=True):
            assert f" = {draft}" in prompt
            assert (". ., " in reply) == (draft == question.task.answer)


# a person's own prompts


def test_a_file_is_a_world(tmp_path: Path) -> None:
    world = FileWorld(write_prompts(tmp_path / "p.jsonl", prompts(200, type="digits")), examples=2)
    train, held_out = world.tasks("train", 1000, 0), world.tasks("held_out", 1000, 0)
    assert 20 <= len(held_out) <= 60
    # What nearly repeats an evaluation prompt is not trained on.
    assert len(train) + len(held_out) + world.left_out == 200
    assert world.types == ("digits",)
    assert held_out[0].document.count("Answer:") in (1, 3)
    assert held_out[0].document.endswith("Answer:")
    assert world.verify(held_out[0], f' "{held_out[0].answer}"\nQuestion: more')
    assert not world.verify(held_out[0], "no")
    assert world.is_held_out(held_out[0])


def test_a_file_that_leaks_its_evaluation_is_refused(tmp_path: Path) -> None:
    rows = prompts(20, split="held_out") + prompts(3, split="train")
    with pytest.raises(DataError, match="training prompts are evaluation prompts") as caught:
        FileWorld(write_prompts(tmp_path / "p.jsonl", rows), examples=0)
    assert "leave split out" in caught.value.todo


@pytest.mark.parametrize(
    ("row", "words"),
    [({"prompt": "x"}, "unknown key"), ({"answer": "x"}, "no instruction"),
     ({"instruction": 3}, "not a text"),
     ({"instruction": "x", "split": "test"}, "expected train or held_out"),
     ({"instruction": "x", "answer": "a\nb"}, "several lines")],
)  # fmt: skip
def test_a_row_that_is_no_prompt_is_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write_prompts(tmp_path / "p.jsonl", [*prompts(3), row])
    with pytest.raises(RowError, match=words) as caught:
        FileWorld(path, examples=0)
    assert "4" in str(caught.value)


def test_prompts_that_nobody_can_check_are_refused(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.jsonl", [{"instruction": row["instruction"]} for row in prompts(50)])
    with pytest.raises(EmptyDataError, match="0 held-out ones"):
        FileWorld(path, examples=0)


def job(**world: Any) -> BootstrapJob:
    return BootstrapJob.parse({"model": {"base_model": "seedling"}, "world": world})


def test_a_job_names_a_world_that_is_there(tmp_path: Path) -> None:
    assert open_world(job(types=["copy", "sort"])).types == ("copy", "sort")
    with pytest.raises(SpecError, match="fly"):
        open_world(job(types=["fly"]))
    path = write_prompts(tmp_path / "p.jsonl", prompts(200))
    with pytest.raises(DataError, match="at least 500"):
        open_world(job(source="file", file=str(path)))
    with pytest.raises(SpecError, match="goes with source: file"):
        job(file=str(path))
