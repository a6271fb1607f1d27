"""Why a worker died, in words: a pure look at its exit code, the end of its output and the host's knowledge.

The order of the tests is the order of certainty: what the host did itself, what the kernel counted, what the
last lines say, and only then the signal alone.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import Literal

Cause = Literal[
    "hung", "oom_kill", "out_of_memory", "disk_full", "cuda", "not_finite", "data", "signal", "unknown"
]
MEMORY_CAUSES: frozenset[Cause] = frozenset({"oom_kill", "out_of_memory"})
RESUME = "`scaler resume` continues at the last committed phase"
LESS = "set training.micro_batch_tokens lower or free memory"


@dataclass(frozen=True)
class Death:
    """What is known of a worker that left no word of its own."""

    returncode: int | None
    """As `subprocess` gives it: -N for signal N; None when nobody waited for it."""
    output: str = ""
    """The end of its output."""
    killed_because: str = ""
    """Why the host killed it; "" where it did not."""
    killed_for: Literal["", "hung", "memory"] = ""
    memory_kills: int = 0
    """Processes that the kernel killed for want of memory while it lived."""
    disk_is_full: bool = False
    """Nothing is free where its run directory is: it could not leave a word, nor could its log."""


@dataclass(frozen=True)
class Crash:
    """A cause with its reason and advice."""

    cause: Cause
    reason: str
    advice: str


_LAST_WORDS: tuple[tuple[Cause, str, str, str], ...] = (
    (
        "out_of_memory", r"out of memory|can't allocate memory|memoryerror|cannot allocate memory",
        "the worker ran out of memory", f"set training.micro_batch_tokens lower; {RESUME}",
    ),
    (
        "disk_full", r"no space left on device|disk quota exceeded|errno 28|the disk is full",
        "the disk is full", f"free some space; {RESUME}",
    ),
    (
        "cuda", r"cuda error|cublas_status|cudnn_status|nccl error|device-side assert|cuda driver",
        "the GPU reported an error",
        f"look at `nvidia-smi` and at worker.log; a driver error may need a restart of the machine; {RESUME}",
    ),
    (
        "not_finite", r"\bnan\b|not finite|non-?finite|floatingpointerror",
        "a number was not finite", f"lower training.learning_rate or look at the data; {RESUME}",
    ),
    (
        "data", r"rowerror|formaterror|emptydataerror|unicodedecodeerror|jsondecodeerror|arrowinvalid",
        "the data could not be read", "check the file named above, correct it and drop it again",
    ),
)  # fmt: skip


def classify(death: Death) -> Crash:
    """The most certain cause of a death."""
    if death.killed_for == "hung":
        reason = f"the worker hung and was killed: {death.killed_because}"
        return Crash("hung", reason, f"see the stacks kept in evidence/; {RESUME}")
    if death.killed_for == "memory":
        return Crash("oom_kill", f"the worker was killed: {death.killed_because}", f"{LESS}; {RESUME}")
    killed = death.returncode == -signal.SIGKILL
    if death.memory_kills and (killed or death.returncode is None):
        return Crash("oom_kill", "the system killed the worker because memory ran out", f"{LESS}; {RESUME}")
    text = death.output.lower()
    for cause, pattern, reason, advice in _LAST_WORDS:
        if re.search(pattern, text):
            return Crash(cause, f"{reason}{_quoted(death.output, pattern)}", advice)
    if death.disk_is_full and (death.returncode is None or death.returncode > 0):
        return Crash("disk_full", "the disk is full", f"free some space; {RESUME}")
    if killed:
        return Crash(
            "signal", "the worker was killed (SIGKILL): by a person, or by the system when memory ran out",
            f"if memory was short, set training.micro_batch_tokens lower; {RESUME}",
        )  # fmt: skip
    if death.returncode is not None and death.returncode < 0:
        return Crash("signal", f"the worker died of {_name(-death.returncode)}", f"see worker.log; {RESUME}")
    found = f"the worker ended without an outcome (exit code {death.returncode})"
    last = next((line for line in reversed(death.output.splitlines()) if line.strip()), "")
    return Crash("unknown", f"{found}: {last.strip()[:300]}" if last else found, f"see worker.log; {RESUME}")


def _quoted(output: str, pattern: str) -> str:
    """The line that told, so that a wrong guess can be seen to be one."""
    for line in reversed(output.splitlines()):
        if re.search(pattern, line.lower()):
            return f": {line.strip()[:200]}"
    return ""


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
