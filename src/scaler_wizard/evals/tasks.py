"""Held-out rows with checkable answers, answered greedily and checked exactly.

A row of the generators brings its own verifier; any other row is right when the answer equals the reference
after normalisation. Only short one-line references are checked that way: a longer one has no single right
wording, and exact match would measure luck.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from scaler_wizard.data.answers import normalise
from scaler_wizard.data.formats import Conversation
from scaler_wizard.data.generators.example import Example
from scaler_wizard.data.progress import OnProgress, no_progress
from scaler_wizard.errors import EmptyDataError
from scaler_wizard.evals.documents import text_ids
from scaler_wizard.evals.generation import generate_batch
from scaler_wizard.evals.results import Proportion, TaskResult
from scaler_wizard.evals.settings import ProbeSettings
from scaler_wizard.evals.tokenizing import Tokenizer
from scaler_wizard.inference.logits import LogitProcessor

MAX_REFERENCE_CHARACTERS = 64
SHOWN_SAMPLES = 12


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One question with one right answer."""

    prompt: str | tuple[dict[str, str], ...]
    """Plain text to continue, or messages that go through the chat template."""
    reference: str
    verify: Callable[[str], bool] | None = None
    """Decides on the raw answer; normalised exact match with `reference` when None."""
    task: str = "row"

    def is_right(self, answer: str) -> bool:
        """Whether the model's raw continuation answers the row."""
        if self.verify is not None:
            return self.verify(answer)
        return normalise(answer) == normalise(self.reference)


def row_from_example(example: Example, form: Literal["document", "instruction", "question"]) -> TaskRow:
    """A generated example in one of its three forms; only "document" bypasses the chat template."""
    if form == "document":
        return TaskRow(example.document, example.answer, example.verify, example.task)
    content = example.instruction if form == "instruction" else example.question
    prompt = ({"role": "user", "content": content},)
    return TaskRow(prompt, example.answer, example.verify, example.task)


def row_from_conversation(conversation: Conversation, task: str = "row") -> TaskRow | None:
    """The last assistant turn as reference, all before it as prompt; None where that cannot be checked."""
    messages = [message.as_dict() for message in conversation.messages]
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return None
    reference = messages[-1]["content"].strip()
    if not normalise(reference) or len(reference) > MAX_REFERENCE_CHARACTERS or "\n" in reference:
        return None
    return TaskRow(tuple(messages[:-1]), reference, None, task)


def encode_prompt(tokenizer: Tokenizer, prompt: str | Sequence[dict[str, str]]) -> list[int]:
    """Token ids that generation starts from. Messages need a tokenizer with a chat template."""
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt))
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    # The template writes the special tokens itself; adding them again would show the model two.
    return text_ids(tokenizer, text)


def task_probe(
    model: nn.Module,
    tokenizer: Tokenizer,
    rows: Sequence[TaskRow],
    settings: ProbeSettings,
    on_progress: OnProgress = no_progress,
    processor: LogitProcessor | None = None,
) -> TaskResult:
    """Share of right answers over at most `settings.task_rows` rows, chosen by the seed.

    processor: the rules of generation that rows in a data profile are answered by.
    chance: 0, an exact answer is not guessed. baseline: always giving the most frequent reference.

    Raises EmptyDataError when there is no row.
    """
    if not rows:
        raise EmptyDataError(
            "no held-out row has a checkable answer",
            f"one-line references of at most {MAX_REFERENCE_CHARACTERS} characters",
            "set evaluation.task_rows to 0 to leave this probe out",
        )
    chosen = sorted(settings.rng("tasks").sample(range(len(rows)), min(settings.task_rows, len(rows))))
    asked = [rows[index] for index in chosen]
    prompts = [encode_prompt(tokenizer, row.prompt) for row in asked]
    limit = settings.max_answer_tokens
    ids = generate_batch(model, tokenizer, prompts, limit, processor=processor, on_progress=on_progress)
    answers = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    right = [row.is_right(answer) for row, answer in zip(asked, answers, strict=True)]
    by_task: dict[str, list[bool]] = {}
    for row, good in zip(asked, right, strict=True):
        by_task.setdefault(row.task, []).append(good)
    frequent = Counter(normalise(row.reference) for row in asked).most_common(1)[0][1]
    pooled = Proportion.of(right)
    return TaskResult(
        value=pooled.accuracy,
        n=pooled.n,
        ci95=pooled.ci95,
        baseline=frequent / len(asked),
        chance=0.0,
        seed=settings.seed,
        pooled=pooled,
        by_task={task: Proportion.of(good) for task, good in sorted(by_task.items())},
        ended=Proportion.of([len(row) < limit for row in ids]),
        correct=tuple(right),
        samples=_samples(asked, answers, right),
    )


def _samples(
    asked: Sequence[TaskRow], answers: Sequence[str], right: Sequence[bool]
) -> tuple[dict[str, Any], ...]:
    order = sorted(range(len(asked)), key=lambda i: (right[i], i))[:SHOWN_SAMPLES]
    return tuple(
        {
            "task": asked[i].task,
            "prompt": asked[i].prompt if isinstance(asked[i].prompt, str) else list(asked[i].prompt),
            "answer": answers[i],
            "reference": asked[i].reference,
            "right": right[i],
        }
        for i in order
    )
