"""training_mark.json: what an attempt was training when it last spoke, for the one after it.

The kernel's memory killer asks nobody and leaves no message: the worker is gone, SIGKILL. The mark says
with which micro-batches it was training, and how many processes the kernel had killed for memory when it
began; if that number has grown since, the next attempt begins with half the size. Without that evidence a
SIGKILL is taken for a person's, and the next attempt does exactly what this one did.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from scaler_wizard.store.durable import json_text, write_atomic
from scaler_wizard.store.rundir import RunDir

NAME = "training_mark.json"
MAX_BYTES = 1 << 16
MAX_CHANGES = 1000
_MOST_TOKENS = 1 << 40


@dataclass(frozen=True)
class TrainingMark:
    """One training of one phase."""

    training: str
    """Phase, and which of its trainings where there are several."""
    attempt: int
    sizes: tuple[tuple[int, int], ...]
    """(step from 0, most tokens of a forward pass from there on), the first at step 0."""
    active: bool
    """Whether it was training when it last spoke."""
    oom_kills: int | None = None
    """The kernel's count when this attempt began to train; None where it is not to be read."""
    killed: bool = False
    """Whether the host saw it killed for want of memory: a cgroup of its own takes its count with it."""


def write_mark(run: RunDir, mark: TrainingMark) -> None:
    """Keep the mark, durably: the next step counts on it."""
    write_atomic(run.path / NAME, json_text(asdict(mark)), fs=run.fs)


def read_mark(run: RunDir) -> TrainingMark | None:
    """The mark, or None where there is none or it is not as we write it."""
    try:
        with (run.path / NAME).open("rb") as file:
            value = json.loads(file.read(MAX_BYTES + 1)[:MAX_BYTES])
        sizes = tuple((first, tokens) for first, tokens in value["sizes"])
        mark = TrainingMark(
            str(value["training"]), int(value["attempt"]), sizes, value["active"] is True, value["oom_kills"],
            value.get("killed") is True,
        )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
    steps = [first for first, _ in sizes]
    right = (
        0 < len(sizes) <= MAX_CHANGES
        and all(type(number) is int and 0 <= number < _MOST_TOKENS for pair in sizes for number in pair)
        and all(tokens > 0 for _, tokens in sizes)
        and steps[0] == 0
        and steps == sorted(set(steps))
        and (mark.oom_kills is None or type(mark.oom_kills) is int)
    )
    return mark if right else None


def note_killed(run: RunDir, attempt: int) -> None:
    """Write down for the next attempt that this one was killed for want of memory while it trained."""
    mark = read_mark(run)
    if mark is not None and mark.active and mark.attempt == attempt:
        write_mark(run, replace(mark, killed=True))


def killed_for_memory(mark: TrainingMark | None, now: int | None) -> bool:
    """Whether the mark's attempt was killed for memory while it trained: the host saw it, or the kernel's
    count, which is `now` today, has grown since."""
    if mark is None or not mark.active:
        return False
    return mark.killed or (mark.oom_kills is not None and now is not None and now > mark.oom_kills)
