"""What a file's training is read from and measured on: rows, replay, fixed questions, earlier questions.

The same questions are asked before and after; how the answers are judged is `evals.promotion`'s matter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from scaler_wizard.data.formats import Conversation
from scaler_wizard.data.lesson import Lesson, Replay, read_lesson, read_replay
from scaler_wizard.data.profiles import find_profile
from scaler_wizard.data.progress import no_progress
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.evals.guided import processor_of
from scaler_wizard.evals.profiled import dress_of, in_profile
from scaler_wizard.evals.row_loss import row_losses
from scaler_wizard.evals.tasks import TaskRow, row_from_conversation
from scaler_wizard.evals.validation import (
    Answers,
    ValidationSet,
    ask,
    measure,
    read_answers,
    validation_set,
)
from scaler_wizard.inference.logits import LogitProcessor
from scaler_wizard.recipes.continual_parent import Parent
from scaler_wizard.recipes.session import ModelSession
from scaler_wizard.report.timeline import QUICK_LOOK
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.continual import ContinualJob

QUESTIONS_A_LOOK, LOSSES_A_LOOK = 5, 8
SHOWN_CHARACTERS = 2000

T = TypeVar("T")


@dataclass(frozen=True)
class Material:
    """Everything that one file's training reads."""

    lesson: Lesson
    replay: Replay
    questions: ValidationSet
    held_out_questions: tuple[TaskRow, ...]
    """Held-out rows of this file that have a checkable answer."""
    earlier_questions: tuple[TaskRow, ...]
    """The same of earlier files."""
    processor: LogitProcessor | None
    """Rules of generation of the data profile, where it has any."""

    def sentences(self) -> list[str]:
        """What was read, for a person."""
        lesson, replay = self.lesson, self.replay
        told = [
            f"{lesson.n_train:,} rows to learn ({lesson.row_format} format), {lesson.n_held_out:,} held out",
        ]
        if lesson.bad.count:
            first = "; ".join(reason for _, reason in lesson.bad.reasons[:3])
            told.append(f"{lesson.bad.count:,} lines are set aside: {first}")
        if lesson.report.zero_label_pieces:
            told.append(f"{lesson.report.zero_label_pieces:,} rows have nothing to learn from")
        if replay.files:
            told.append(f"{len(replay.rows):,} rows of {replay.files} earlier files are replayed")
        return [*told, *(f"not replayed: {reason}" for reason in replay.missing)]


def read_material(
    context: PhaseContext, session: ModelSession, job: ContinualJob, parent: Parent, row_limit: int
) -> Material:
    """Read the file, earlier files and questions.

    Raises:
        DataError: nothing to learn from, or a validation file without questions.
    """
    seed, most = job.training.seed, job.validation.rows
    profile = find_profile(job.data.profile)
    dress = dress_of(profile, seed)
    report = context.progress("rows read")
    lesson = read_lesson(
        job.dataset, session.tokenizer, context=row_limit, seed=seed, questions=most,
        dress=dress, on_rows=lambda count: report(count, count),
    )  # fmt: skip
    replay = read_replay(
        parent.replay, job.dataset, session.tokenizer, context=row_limit, seed=seed, draw=job.file.sha256,
        max_rows=job.replay.max_rows if job.replay.fraction else 0, questions=most, dress=dress,
    )  # fmt: skip

    def checkable(conversations: Sequence[Conversation], name: str) -> tuple[TaskRow, ...]:
        found = (row_from_conversation(conversation, name) for conversation in conversations)
        return tuple(in_profile(row, profile, seed) for row in found if row is not None)

    return Material(
        lesson,
        replay,
        validation_set(job.validation, seed, job.data.system_prompt, profile),
        checkable(lesson.questions, "this file"),
        checkable(replay.questions, "earlier files"),
        processor_of(profile, session.adapted, session.tokenizer),
    )


def measure_model(
    context: PhaseContext, session: ModelSession, material: Material, job: ContinualJob,
    known: Answers | None = None,
) -> Metrics:  # fmt: skip
    """Fixed questions, earlier questions, and losses of this file's and earlier files' rows.

    Args:
        known: what this very model already answered to the fixed questions.

    Returns:
        answers, earlier (right or wrong, in order), earlier_losses, held_out_losses, train_losses (mean nats
        of each row), seconds that measuring everything takes.
    """
    model, seed, most = session.adapted, job.training.seed, job.validation.rows
    started = time.monotonic()
    with session.evaluating():
        answers = known or measure(
            model, session.tokenizer, material.questions, seed, context.progress, time.monotonic,
            material.processor,
        )  # fmt: skip
        earlier, _ = ask(
            model, session.tokenizer, material.earlier_questions, seed, context.progress("earlier questions"),
            material.processor,
        )  # fmt: skip
        losses = {
            name: row_losses(model, spread(rows, most), context.progress(f"loss of {words}"))
            for name, words, rows in (
                ("held_out_losses", "held-out rows", material.lesson.held_out),
                ("train_losses", "training rows", material.lesson.train),
                ("earlier_losses", "earlier rows", material.replay.held_out),
            )
        }
    seconds = time.monotonic() - started + (answers.seconds if known else 0.0)
    context.probe("validation", validation_probe(answers, seed))
    return {
        "answers": answers.as_dict(), "earlier": list(earlier), **losses, "seconds": seconds,
        "accuracy": accuracy(answers), "reused": known is not None,
        "validation_loss": mean(losses["held_out_losses"]),
    }  # fmt: skip


def spread(rows: Sequence[TokenRow], most: int) -> list[TokenRow]:
    """At most so many rows, evenly spaced."""
    count = min(most, len(rows))
    return [rows[int(index)] for index in np.linspace(0, len(rows) - 1, count).round()] if count else []


def mean(values: Sequence[float]) -> float | None:
    """Their mean; None where there are none."""
    return fmean(values) if values else None


def accuracy(answers: Answers) -> float:
    """Share of right answers over all difficulties."""
    flat = [answer for row in answers.right.values() for answer in row]
    return sum(flat) / len(flat)


def validation_probe(answers: Answers, seed: int) -> Metrics:
    """The answers as a probe's record."""
    by_difficulty = {name: sum(row) / len(row) for name, row in answers.right.items()}
    n = sum(len(row) for row in answers.right.values())
    return {"value": accuracy(answers), "n": n, "seed": seed, "by_difficulty": by_difficulty}


def known_answers(parent: Parent, questions: ValidationSet) -> Answers | None:
    """What the parent version answered when it was made: the same weights, the same questions."""
    directory: Path | None = parent.directory
    return None if directory is None else read_answers(directory, questions)


@dataclass(frozen=True)
class QuickLook:
    """A few held-out rows every so many steps, in turn; greedy, so that training is not disturbed.

    Five short answers and the loss of eight rows bound what a look costs.
    """

    context: PhaseContext
    session: ModelSession
    material: Material
    every: int
    seed: int

    def __call__(self, step: int) -> None:
        """Look after this step, if it is due."""
        if not self.every or step % self.every:
            return
        look, model = step // self.every - 1, self.session.adapted
        rows = _in_turn(self.material.lesson.held_out, look, LOSSES_A_LOOK)
        questions = tuple(_in_turn(self.material.held_out_questions, look, QUESTIONS_A_LOOK))
        if not rows:
            return
        right, samples = ask(
            model, self.session.tokenizer, questions, self.seed, no_progress, self.material.processor
        )
        result: Metrics = {
            "value": sum(right) / len(right) if right else None, "n": len(right), "step": step,
            "validation_loss": mean(row_losses(model, rows)),
            "answers": [_answer(sample) for sample in samples],
        }  # fmt: skip
        self.context.probe(QUICK_LOOK, result)


def _in_turn(items: Sequence[T], turn: int, count: int) -> list[T]:
    """The `turn`-th `count` of them, from the start again after the last."""
    return [items[(turn * count + k) % len(items)] for k in range(min(count, len(items)))]


def _answer(sample: Any) -> Metrics:
    prompt = sample["prompt"]
    asked = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    texts = {"question": asked, "expected": sample["reference"], "answer": sample["answer"]}
    return {key: str(text)[:SHOWN_CHARACTERS] for key, text in texts.items()} | {"right": sample["right"]}
