"""A world of a person's own prompts: a JSONL file of instructions, some with answers to measure by.

A row has `instruction`, and where there are any `question` (the same asked implicitly), `document` (what a
base model continues with the answer), `type`, `answer`, and `split` ("train" or "held_out"). Without `split`
a hash of the instruction decides. A held-out row that a training row repeats, or nearly repeats, would
measure memory: where the file says so itself it is refused, else the training row is left out. Torch-free.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from scaler_wizard.data.answers import normalise
from scaler_wizard.data.generation_gates import is_known, known_prompts
from scaler_wizard.data.generators.example import first_answer, is_held_out_text
from scaler_wizard.data.json_rows import read_jsonl
from scaler_wizard.data.rows import BadRows, row_error
from scaler_wizard.data.world import Split, Task
from scaler_wizard.errors import DataError, EmptyDataError

KEYS: Final = ("instruction", "question", "document", "type", "answer", "split")
EXAMPLE = "Question: {}\nAnswer: {}\n\n"
DOCUMENT = "Question: {}\nAnswer:"
DEFAULT_TYPE = "prompt"
MAX_PROMPTS = 1_000_000


class FileWorld:
    """Prompts of a file.

    Args:
        examples: worked examples, from training rows with answers, before a prompt without a document form.

    Raises:
        DataError: a row that is no prompt, or evaluation rows among the training rows.
        EmptyDataError: nothing to train on, or nothing with an answer to measure by.
    """

    name = "file"
    reads_tasks = False

    def __init__(self, path: Path, examples: int) -> None:
        tasks: dict[Split, list[Task]] = {"train": [], "held_out": []}
        said: set[str] = set()
        for task, split in _read(path):
            if split is not None:
                said.add(split)
            tasks[split or _split_of(task)].append(task)
        held_out = [task for task in tasks["held_out"] if task.answer is not None]
        if not tasks["train"] or not held_out:
            raise EmptyDataError(
                f"{path} has {len(tasks['train']):,} prompts to train on and {len(held_out):,} held-out ones "
                "with an answer", "some of both: what nobody can check cannot pass a gate",
                'add rows with an "answer", or say "split" in the rows',
            )  # fmt: skip
        evaluation = [text for task in tasks["held_out"] for text in (task.explicit, task.implicit) if text]
        known = known_prompts(evaluation)
        leaked = [task for task in tasks["train"] if is_known(known, task.explicit)]
        if leaked and said:
            raise DataError(
                f'{path}: {len(leaked):,} training prompts are evaluation prompts, or nearly ("'
                f'{leaked[0].explicit[:60]}")',
                "prompts to train on that do not stand among those that measure",
                "remove them from one side, or leave split out: then they are kept apart by themselves",
            )
        self.left_out = len(leaked)
        """Training rows that nearly repeat an evaluation row."""
        names = {task.explicit for task in leaked}
        self._train = [task for task in tasks["train"] if task.explicit not in names]
        self._held_out = held_out
        shown = [task for task in self._train if task.answer is not None][:examples]
        self._examples = "".join(EXAMPLE.format(task.explicit, task.answer) for task in shown)
        self._types = tuple(sorted({task.type for task in (*self._train, *held_out)}))
        self._held_out_names = {normalise(text) for text in evaluation}

    @property
    def types(self) -> tuple[str, ...]:
        """Every kind of task, sorted."""
        return self._types

    def tasks(self, split: Split, n: int, seed: int, types: Sequence[str] | None = None) -> tuple[Task, ...]:
        """At most `n` prompts in an order of the seed, evenly over `types`."""
        source = self._train if split == "train" else self._held_out
        by_type: dict[str, list[Task]] = defaultdict(list)
        for task in source:
            if types is None or task.type in types:
                by_type[task.type].append(task)
        for kind, members in sorted(by_type.items()):
            random.Random(f"{seed}/{split}/{kind}").shuffle(members)
        found: list[Task] = []
        turn = 0
        while len(found) < n and any(len(members) > turn for members in by_type.values()):
            found += [members[turn] for _, members in sorted(by_type.items()) if len(members) > turn]
            turn += 1
        return tuple(self._as_document(task) for task in found[:n])

    def _as_document(self, task: Task) -> Task:
        if task.document:
            return task
        document = self._examples + DOCUMENT.format(task.explicit)
        return Task(task.type, task.input, document, task.explicit, task.implicit, task.answer)

    def verify(self, task: Task, output: str) -> bool:
        """Whether the first line says the same as the answer."""
        return task.answer is not None and normalise(first_answer(output)) == normalise(task.answer)

    def read(self, text: str) -> Task | None:
        """Nothing: what a text asks for cannot be read exactly in the open world."""
        return None

    def is_held_out(self, task: Task) -> bool:
        """Whether the prompt stands among those that measure."""
        return normalise(task.explicit) in self._held_out_names


def _split_of(task: Task) -> Split:
    return "held_out" if is_held_out_text(normalise(task.explicit)) else "train"


def _read(path: Path) -> Iterator[tuple[Task, Split | None]]:
    for count, row in enumerate(read_jsonl(path, BadRows()), start=1):
        if count > MAX_PROMPTS:
            raise DataError(f"{path} has more than {MAX_PROMPTS:,} rows", "fewer prompts")
        try:
            yield _task(row.value)
        except ValueError as error:
            raise row_error(path, row.number, str(error)) from None


def _task(value: Mapping[str, Any]) -> tuple[Task, Split | None]:
    """One row.

    Raises:
        ValueError: says what is wrong with it.
    """
    unknown = sorted(set(value) - set(KEYS))
    if unknown:
        raise ValueError(f'unknown key "{unknown[0][:40]}"; a prompt has {", ".join(KEYS)}')
    texts = {key: value.get(key) for key in KEYS}
    for key, text in texts.items():
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise ValueError(f"{key} is not a text")
    if texts["instruction"] is None:
        raise ValueError("no instruction")
    split = texts["split"]
    if split not in (None, "train", "held_out"):
        raise ValueError(f'split is "{split}", expected train or held_out')
    instruction = str(texts["instruction"]).strip()
    answer = texts["answer"]
    if answer is not None and "\n" in answer.strip():
        raise ValueError("the answer has several lines, and only one line can be compared")
    return (
        Task(
            str(texts["type"] or DEFAULT_TYPE), instruction, str(texts["document"] or ""), instruction,
            texts["question"], None if answer is None else answer.strip(),
        ),
        cast("Split | None", split),
    )  # fmt: skip
