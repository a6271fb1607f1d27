"""Runs short of memory, by a limit the kernel enforces on the real worker: they get through, and learn.

The worker inherits an RLIMIT_DATA between what loading and evaluating takes and what a training step takes at
the planned size, both measured on a run without a limit. The kernel's memory killer cannot be set off for one
process here; its trace, a count that has grown since the worker began to train, is written in its place.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaler_wizard.jobs.prepare import prepare
from scaler_wizard.jobs.process import read_ending
from scaler_wizard.planning.hardware import probe_hardware
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.store.learned_sizes import learned_sizes
from scaler_wizard.store.oom_kills import oom_kills
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.training_mark import NAME, read_mark
from scaler_wizard.store.workspace import Workspace

TOKENS = 4096
MIB = 1 << 20


@contextmanager
def data_limit(limit: int) -> Iterator[None]:
    """What is started inside may hold so many bytes of data; this process is not touched by it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def data_bytes(pid: int) -> int:
    """What RLIMIT_DATA counts of a process; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData")), 0)


def peaks(harness: ModuleType, host: Any, run: RunDir) -> tuple[int, int]:
    """See a run through; (most data before its training, most data at all) in bytes, sampled."""
    harness.start(host, run)
    pid = harness.worker_pid(run)
    before, most = 0, 0
    while host.call("alive", run=run.id)["alive"]:
        now = data_bytes(pid)
        most = max(most, now)
        if not any(event.phase == "P1" for event in harness.events(run, "phase_started")):
            before = most
        time.sleep(0.005)
    return before, most


def losses(harness: ModuleType, run: RunDir) -> dict[int, float]:
    """The loss of every step, the last time it was done."""
    return {event.step: event.loss for event in harness.events(run, "step")}


def notes(harness: ModuleType, run: RunDir) -> list[str]:
    return [event.text for event in harness.events(run, "note") if "memory ran out" in event.text]


def test_a_worker_short_of_memory_halves_and_the_next_plan_knows(harness: ModuleType, tmp_path: Path) -> None:
    value = harness.job_value(
        training={"max_steps": 3, "batch_tokens": TOKENS, "micro_batch_tokens": None, "final_steps": 0},
        evaluation={"documents": 4, "task_rows": 0}, export={"merged": False, "adapter": False},
    )  # fmt: skip
    whole = harness.create(Workspace.create(tmp_path / "whole"), value)
    with harness.hosted(Workspace.open(tmp_path / "whole")) as host:
        before, most = peaks(harness, host, whole)
    assert most - before > 100 * MIB, "the step must take much more than what comes before it"
    workspace = Workspace.create(tmp_path / "short")
    run = harness.create(workspace, value)
    with harness.hosted(workspace) as host:
        with data_limit((before + most) // 2):
            harness.start(host, run)
        row = harness.finish(host, run)
    assert row["status"] == "completed", (row["error"], run.worker_log.read_text()[-2000:])
    assert notes(harness, run)
    # Equal but for the order in which micro-batches are summed.
    assert losses(harness, run) == pytest.approx(losses(harness, whole), rel=1e-4)
    (size,) = learned_sizes(workspace.learned)
    assert size.cause == "out_of_memory"
    assert size.tokens <= TOKENS // 2
    machine = probe_hardware(workspace.root)
    again = GrowJob.parse(run.job())
    as_free = replace(machine, ram_available=size.memory_available)
    plan = prepare(again, workspace, as_free).plan
    assert plan.phase("P1").micro_batch_tokens == size.tokens
    assert any("ran out of memory with more" in note for note in plan.notes)
    more = prepare(again, workspace, replace(machine, ram_available=2 * size.memory_available)).plan
    assert more.phase("P1").micro_batch_tokens > size.tokens, "with much more memory it is tried again"


def killed_in_training(harness: ModuleType, workspace: Workspace, value: dict[str, Any]) -> RunDir:
    run: RunDir = harness.create(workspace, value)
    with harness.hosted(workspace) as host:
        harness.start(host, run)
        harness.wait_for(lambda: len(harness.events(run, "step")) >= 3, "three steps")
        harness.kill(harness.worker_pid(run))
        harness.finish(host, run)
    return run


@pytest.fixture
def small_job(harness: ModuleType, tmp_path: Path) -> dict[str, Any]:
    model = harness.save_tiny(tmp_path / "model", "llama")
    rows, texts = harness.write_messages(tmp_path / "rows.jsonl"), harness.write_texts(tmp_path / "t.txt")
    value: dict[str, Any] = harness.job_value(
        model, training={"max_steps": 40, "batch_tokens": 512, "micro_batch_tokens": 512},
        dataset={"source": "local", "identifier": str(rows), "text_file": str(texts)},
        evaluation={"documents": 4, "task_rows": 0}, export={"merged": False},
    )  # fmt: skip
    return value


def test_an_attempt_after_the_kernels_kill_is_half_as_large(
    harness: ModuleType, tmp_path: Path, small_job: dict[str, Any]
) -> None:
    workspace = Workspace.create(tmp_path / "w")
    run = killed_in_training(harness, workspace, small_job)
    mark, now = read_mark(run), oom_kills()
    assert mark is not None
    assert (mark.training, mark.attempt, mark.active, mark.sizes) == ("P1", 1, True, ((0, 512),))
    if now is None:
        pytest.skip("this kernel does not count its kills")
    # Without more kills than before it was a person's (test_exact_resume continues 50 such without a change).
    assert "by a person, or by the system" in read_ending(run, 1, -9).reason
    assert "because memory ran out" in read_ending(run, 1, -9, memory_kills=1).reason
    (run.path / NAME).write_text(json.dumps(asdict(replace(mark, oom_kills=now - 1))))
    with harness.hosted(workspace) as host:
        harness.start(host, run)
        row = harness.finish(host, run)
    assert row["status"] == "completed", row["error"]
    (said,) = notes(harness, run)
    assert "the system killed attempt 1" in said
    assert [size.cause for size in learned_sizes(workspace.learned)] == ["killed"]
    after = read_mark(run)
    assert after is not None
    assert not after.active
    assert after.sizes[-1][1] <= 256
