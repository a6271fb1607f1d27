"""The fixed questions of a lineage: easy, medium and hard, the same for every version, asked and checked.

They come from three files, or from generators whose answers are verified exactly. Their digest says whether
two versions answered the same questions; what a version answered lies beside its weights, so that the next
file does not measure the same model again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from scaler_wizard.data.dataset import open_rows
from scaler_wizard.data.formats import Conversation, to_messages
from scaler_wizard.data.generators import DIFFICULTIES, EXPERT_SKILLS, GENERATORS, Difficulty, sample_example
from scaler_wizard.data.profiles import Profile
from scaler_wizard.data.profiles.emoji_think import EMOJI_THINK
from scaler_wizard.data.profiles.none import NONE
from scaler_wizard.data.progress import OnProgress
from scaler_wizard.data.rows import BadRows
from scaler_wizard.data.split import row_position
from scaler_wizard.errors import EmptyDataError, RowError, SpecError
from scaler_wizard.evals.profiled import in_profile
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.tasks import TaskRow, row_from_conversation, row_from_example, task_probe
from scaler_wizard.evals.tokenizing import Tokenizer
from scaler_wizard.inference.logits import LogitProcessor
from scaler_wizard.specs.continual import ValidationSection
from scaler_wizard.specs.sections import DatasetSection

ANSWERS_FILE = "validation.json"
MAX_ANSWERS_BYTES = 16 << 20
ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """Questions by difficulty, in a fixed order."""

    rows: Mapping[str, tuple[TaskRow, ...]]
    digest: str
    """SHA-256 over every question and reference, and the rules they are answered by."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model answered."""

    right: Mapping[str, tuple[bool, ...]]
    """Per question, by difficulty."""
    samples: tuple[Mapping[str, Any], ...]
    """A few questions with answer and reference, wrong ones first."""
    seconds: float
    """How long it took."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        right = {name: list(answers) for name, answers in self.right.items()}
        return {"right": right, "samples": list(self.samples), "seconds": self.seconds}

    @classmethod
    def from_dict(cls, value: Any) -> Answers:
        """What `as_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: it is not that.
        """
        right = {str(name): tuple(bool(answer) for answer in row) for name, row in value["right"].items()}
        return cls(right, tuple(dict(sample) for sample in value["samples"]), float(value["seconds"]))


def validation_set(
    section: ValidationSection, seed: int, system_prompt: str | None, profile: Profile = NONE
) -> ValidationSet:
    """The questions that a section and a lineage's seed name, as the data profile puts them.

    Raises:
        DataError: a file without a question that can be checked.
        SpecError: no generator of that name.
    """
    files: dict[Difficulty, str | None] = {
        "easy": section.easy,
        "medium": section.medium,
        "hard": section.hard,
    }
    rows: dict[str, tuple[TaskRow, ...]] = {
        name: _from_file(name, path, section.rows, seed, system_prompt) if path
        else _generated(name, section, seed, system_prompt)
        for name, path in files.items()
    }  # fmt: skip
    dressed: dict[str, tuple[TaskRow, ...]] = {
        name: tuple(in_profile(row, profile, seed) for row in found) for name, found in rows.items()
    }
    told = {name: [(row.prompt, row.reference, row.task) for row in found] for name, found in dressed.items()}
    rules = [profile.name] if profile is EMOJI_THINK else []  # its answers follow rules of their own
    text = json.dumps([told, ANSWER_TOKENS, *rules], sort_keys=True, ensure_ascii=True)
    return ValidationSet(dressed, hashlib.sha256(text.encode("ascii")).hexdigest())


def ask(
    model: nn.Module,
    tokenizer: Tokenizer,
    rows: tuple[TaskRow, ...],
    seed: int,
    on_progress: OnProgress,
    processor: LogitProcessor | None = None,
) -> tuple[tuple[bool, ...], tuple[Mapping[str, Any], ...]]:
    """Answer questions greedily: (right or wrong in order, some of them in words)."""
    if not rows:
        return (), ()
    settings = ProbeSettings(
        base_length=128, length=128, seed=seed, task_rows=len(rows), max_answer_tokens=ANSWER_TOKENS
    )
    found = task_probe(model, tokenizer, rows, settings, on_progress, processor)
    return found.correct, found.samples


def measure(
    model: nn.Module,
    tokenizer: Tokenizer,
    questions: ValidationSet,
    seed: int,
    progress: Callable[[str], OnProgress],
    clock: Callable[[], float],
    processor: LogitProcessor | None = None,
) -> Answers:
    """Ask all questions of a validation set, by the rules of their profile. `clock` in seconds."""
    started = clock()
    right: dict[str, tuple[bool, ...]] = {}
    samples: list[Mapping[str, Any]] = []
    for name, rows in questions.rows.items():
        right[name], shown = ask(model, tokenizer, rows, seed, progress(f"{name} questions"), processor)
        samples += [{**sample, "difficulty": name} for sample in shown[:4]]
    return Answers(right, tuple(samples), clock() - started)


def write_answers(directory: Path, answers: Answers, questions: ValidationSet) -> None:
    """Lay a version's answers beside its weights."""
    value = {"questions": questions.digest, **answers.as_dict()}
    (directory / ANSWERS_FILE).write_text(json.dumps(value) + "\n", encoding="utf-8")


def read_answers(directory: Path, questions: ValidationSet) -> Answers | None:
    """A version's own answers to exactly these questions; None where it has none."""
    try:
        with (directory / ANSWERS_FILE).open("rb") as file:
            value = json.loads(file.read(MAX_ANSWERS_BYTES))
        if value["questions"] != questions.digest:
            return None
        answers = Answers.from_dict(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    sizes = {name: len(rows) for name, rows in questions.rows.items()}
    return answers if {name: len(row) for name, row in answers.right.items()} == sizes else None


def _generated(
    difficulty: Difficulty, section: ValidationSection, seed: int, system_prompt: str | None
) -> tuple[TaskRow, ...]:
    tasks = section.tasks or [task for task in GENERATORS if task not in EXPERT_SKILLS]
    unknown = [task for task in tasks if task not in GENERATORS]
    if unknown:
        raise SpecError(
            f'validation.tasks names "{unknown[0]}"', f"generators: {', '.join(GENERATORS)}", "correct it"
        )
    levels = DIFFICULTIES[difficulty]
    examples = (
        sample_example(
            tasks[number % len(tasks)], f"validation/{seed}/{number}",
            levels[(number // len(tasks)) % len(levels)], split="held_out",
        )
        for number in range(section.rows)
    )  # fmt: skip
    return tuple(_prompted(row_from_example(example, "instruction"), system_prompt) for example in examples)


def _prompted(row: TaskRow, system_prompt: str | None) -> TaskRow:
    if system_prompt is None or isinstance(row.prompt, str):
        return row
    prompt = ({"role": "system", "content": system_prompt}, *row.prompt)
    return TaskRow(prompt, row.reference, row.verify, row.task)


def _from_file(
    difficulty: Difficulty, path: str, count: int, seed: int, system_prompt: str | None
) -> tuple[TaskRow, ...]:
    """The `count` checkable rows of a file that come first by hash."""
    section = DatasetSection(identifier=path, bad_rows="quarantine")
    row_format, rows = open_rows(section, BadRows("quarantine"))
    found: list[tuple[float, int, TaskRow]] = []
    for row in rows:
        try:
            content = to_messages(row, row_format, system_prompt, path)
        except RowError:
            continue
        question = row_from_conversation(content, difficulty) if isinstance(content, Conversation) else None
        if question is not None:
            found.append((row_position(row, seed), row.number, question))
    if not found:
        raise EmptyDataError(
            f"{path} has no question with a checkable answer", "one-line answers of at most 64 characters",
            f"give another file as validation.{difficulty}, or none for generated questions",
        )  # fmt: skip
    return tuple(question for _, _, question in sorted(found, key=lambda item: item[:2])[:count])
