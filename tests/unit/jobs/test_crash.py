"""Causes of a death, and the order in which they are believed."""

from __future__ import annotations

import signal

import pytest

from scaler_wizard.jobs.crash import Cause, Death, classify


@pytest.mark.parametrize(
    ("death", "cause", "reason", "advice"),
    [
        (Death(-9, killed_for="hung", killed_because="no progress for 301 s"), "hung", "301 s", "evidence/"),
        (Death(-9, killed_for="memory", killed_because="9 GiB"), "oom_kill", "9 GiB", "micro_batch"),
        (Death(-9, memory_kills=1), "oom_kill", "memory ran out", "micro_batch"),
        (Death(None, memory_kills=1), "oom_kill", "memory ran out", "micro_batch"),
        (Death(1, "KeyError: 'x'", memory_kills=1), "unknown", "KeyError", "worker.log"),
        (Death(1, "RuntimeError: CUDA out of memory."), "out_of_memory", "CUDA out of memory", "lower"),
        (Death(1, "a\nRuntimeError: CUDA error: device-side assert\nb"), "cuda", "device-side", "nvidia-smi"),
        (Death(1, "OSError: [Errno 122] Disk quota exceeded"), "disk_full", "quota", "free some space"),
        (Death(1, "ValueError: loss is nan at step 3"), "not_finite", "step 3", "learning_rate"),
        (Death(1, "pyarrow.lib.ArrowInvalid: CSV parse error"), "data", "CSV parse", "check the file"),
        (Death(-signal.SIGBUS), "signal", "SIGBUS", "worker.log"),
        (Death(-9), "signal", "SIGKILL", "memory was short"),
        (Death(1, "banana"), "unknown", "banana", "worker.log"),
    ],
)
def test_the_most_certain_cause(death: Death, cause: Cause, reason: str, advice: str) -> None:
    crash = classify(death)
    assert crash.cause == cause
    assert reason in crash.reason
    assert advice in crash.advice
