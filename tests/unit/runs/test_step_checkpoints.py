"""Step checkpoints by the real writer process: what it commits, and what a disk or a kill does to it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from scaler_wizard.errors import CheckpointError, WorkspaceBusyError
from scaler_wizard.models.tensor_files import Files, TensorFile, image_of, write_files
from scaler_wizard.runs.step_checkpoints import MAX_DEATHS, StepCheckpoints
from scaler_wizard.store.checkpoint_image import place
from scaler_wizard.store.checkpoint_writer import WriteAnswer, WriteRequest, serve
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.durable import is_disk_full
from scaler_wizard.store.faulty import FaultyFileSystem
from scaler_wizard.store.lock import RunLock, inherited_descriptors, is_locked
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

MIXED = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.arange(3, dtype=torch.bfloat16),
    "step": torch.tensor(7.0),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "empty": torch.zeros(0, 4),
    "long": torch.arange(2),
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir.create(tmp_path / "run", "run")
    with CheckpointStore(made).stage("P0") as staging:
        (staging.path / "weights.json").write_text("{}")
        staging.commit(step=0)
    return made


@pytest.fixture
def steps(run: RunDir) -> Iterator[StepCheckpoints]:
    made = StepCheckpoints(run, 3, every_sec=60.0)
    yield made
    made.close()


def files(value: float = 1.0, numbers: int = 1000) -> Files:
    return {
        "state.json": b'{"step": 1}\n',
        "adapter/weights.safetensors": TensorFile({"w": torch.full((numbers,), value)}, {"format": "pt"}),
    }


def test_an_image_holds_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    image = image_of({"x.safetensors": TensorFile(MIXED, {"format": "pt"}), "y.json": b"{}"})
    buffer = bytearray(image.size)
    image.write(memoryview(buffer))
    found = {part.name: bytes(buffer[part.offset : part.offset + part.bytes]) for part in image.parts}
    assert found == {"x.safetensors": save(MIXED, {"format": "pt"}), "y.json": b"{}"}
    write_files({"deep/x.safetensors": TensorFile(MIXED, {"format": "pt"})}, tmp_path)
    assert (tmp_path / "deep" / "x.safetensors").read_bytes() == found["x.safetensors"]


def test_an_image_takes_tensors_that_are_not_contiguous() -> None:
    turned = torch.arange(12.0).reshape(3, 4).T
    image = image_of({"x": TensorFile({"w": turned})})
    buffer = bytearray(image.size)
    image.write(memoryview(buffer))
    assert bytes(buffer[: image.parts[0].bytes]) == save({"w": turned.contiguous()})


def test_the_writer_commits_what_the_tensors_were_at_the_snapshot(
    run: RunDir, steps: StepCheckpoints
) -> None:
    weights = torch.ones(100_000)
    steps.begin("P1", 5, lambda: {"w.safetensors": TensorFile({"w": weights})})
    weights.fill_(2.0)  # the training goes on
    done = steps.wait()
    assert done is not None
    assert (done.phase, done.step, done.checkpoint) == ("P1", 5, "P1-0002")
    assert done.bytes >= 400_000
    assert not steps.busy
    assert steps.poll() is None
    found = CheckpointStore(run).newest_verified().checkpoint
    assert found is not None
    assert (found.name, found.kind, found.step, found.extra) == ("P1-0002", "step", 5, {"attempt": 3})
    assert torch.equal(load_file(found.path / "w.safetensors")["w"], torch.ones(100_000))


def test_the_buffer_is_used_again_and_grows(run: RunDir, steps: StepCheckpoints) -> None:
    for number, size in enumerate((1000, 50_000, 10), start=1):
        steps.begin("P1", number, partial(files, float(number), size))
        assert steps.wait() is not None
        newest = CheckpointStore(run).newest_verified().checkpoint
        assert newest is not None
        weights = load_file(newest.path / "adapter" / "weights.safetensors")["w"]
        assert torch.equal(weights, torch.full((size,), float(number)))
    assert len(CheckpointStore(run).names()) == 3, "P0 and the two newest"


def test_the_next_one_is_due_after_the_interval_and_not_while_the_writer_works(run: RunDir) -> None:
    now = [0.0]
    steps = StepCheckpoints(run, 1, every_sec=10.0, clock=lambda: now[0])
    try:
        assert not steps.due()
        now[0] = 10.0
        assert steps.due()
        steps.begin("P1", 1, files)
        now[0] = 50.0
        assert not steps.due(), "busy: this one is left out"
        steps.wait()
        assert steps.due()
        steps.restart_clock()
        assert not steps.due()
    finally:
        steps.close()


def test_a_slow_snapshot_makes_the_next_one_later(run: RunDir) -> None:
    now = [0.0]
    steps = StepCheckpoints(run, 1, every_sec=0.0, clock=lambda: now[0])
    try:
        steps.begin("P1", 1, partial(files, numbers=2_000_000))
        done = steps.wait()
        assert done is not None
        now[0] = 99 * done.snapshot_seconds
        assert not steps.due()
        now[0] = 101 * done.snapshot_seconds
        assert steps.due()
    finally:
        steps.close()


def test_a_file_that_cannot_be_written_is_a_failure_and_leaves_the_old_ones(
    run: RunDir, steps: StepCheckpoints
) -> None:
    """A real refusal by the kernel: the writer may not make files of more than 1 MiB."""
    steps.begin("P1", 1, files)
    first = steps.wait()
    assert first is not None
    (writer,) = children()
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    steps.begin("P1", 2, partial(files, numbers=1_000_000))
    with pytest.raises(CheckpointError, match="File too large") as caught:
        steps.wait()
    assert not is_disk_full(caught.value)
    found = CheckpointStore(run).newest_verified()
    assert found.checkpoint is not None
    assert (found.checkpoint.name, found.quarantined) == (first.checkpoint, ())
    steps.begin("P1", 3, files)
    third = steps.wait()
    assert third is not None
    assert third.step == 3, "the next one is written from new bytes"


def children() -> list[int]:
    """Process ids of this process's living children that are checkpoint writers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            words = (path.parent / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == os.getpid() and b"checkpoint_writer" in words:
            found.append(int(path.parent.name))
    return found


def mount_small(folder: Path) -> Callable[[], None]:
    """A real file system of 2 MiB, and how to take it away; skips where this user may not mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        pytest.skip(f"mount: {error}")
    if done.returncode:
        pytest.skip(f"mounting needs root: {done.stderr.decode().strip()}")
    return lambda: subprocess.run(["umount", "-l", str(folder)], check=True) and None


def test_a_full_disk_is_told_apart_and_gives_its_space_back(tmp_path: Path) -> None:
    unmount = mount_small(tmp_path / "disk")
    try:
        run = RunDir.create(tmp_path / "disk" / "run", "run")
        steps = StepCheckpoints(run, 1, every_sec=60.0)
        try:
            steps.begin("P1", 1, partial(files, numbers=100_000))
            assert steps.wait() is not None
            free = os.statvfs(run.path).f_bavail
            steps.begin("P1", 2, partial(files, numbers=1_000_000))
            with pytest.raises(CheckpointError, match="No space left") as caught:
                steps.wait()
            assert is_disk_full(caught.value)
            assert "free some space" in caught.value.todo
            assert os.statvfs(run.path).f_bavail == free, "what was staged is gone"
            found = CheckpointStore(run).newest_verified().checkpoint
            assert found is not None
            assert found.step == 1
        finally:
            steps.close()
    finally:
        unmount()


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_a_fault_at_any_call_is_answered_as_a_failure(tmp_path: Path, fault: str) -> None:
    """The writer's own loop on a disk that fails once, at each of its calls in turn."""
    parts, size = place({"a/w": 100, "s": 10})
    request = WriteRequest("P1", 4, size, parts, {}).line()
    failed = 0
    for number in range(100):
        run = RunDir.create(tmp_path / f"run{number}", "run")
        fs = FaultyFileSystem(run.path, number, fault)  # type: ignore[arg-type]
        answers: list[bytes] = []
        serve(CheckpointStore(run, fs), [request], lambda n: memoryview(bytes(n)), answers.append)
        fs.close()
        if number >= len(fs.calls):
            break
        answer = WriteAnswer.parse(answers[0])
        newest = CheckpointStore(run).newest_verified().checkpoint
        if answer.checkpoint:
            assert newest is not None
            continue  # after the commit: a mirror, or an old checkpoint that could not be deleted
        failed += 1
        error = answer.error()
        assert error is not None
        assert answer.errno == getattr(errno, fault)
        assert is_disk_full(error) == (fault == "ENOSPC")
        assert "intact" in error.todo or "space" in error.todo
    else:
        raise AssertionError("more calls than expected")
    assert failed >= 8


def test_a_killed_writer_costs_one_checkpoint_and_three_end_the_run(
    run: RunDir, steps: StepCheckpoints
) -> None:
    for number in range(1, MAX_DEATHS + 1):
        steps.begin("P1", number, files)
        (writer,) = children()
        os.kill(writer, signal.SIGSTOP)  # so that it cannot have finished
        os.kill(writer, signal.SIGKILL)
        if number < MAX_DEATHS:
            lost = steps.wait()
            # It may have committed before the stop reached it; then its answer is the truth.
            assert lost is not None
            if lost.checkpoint:
                pytest.skip("the writer was faster than the signal")
    with pytest.raises(CheckpointError, match="died 3 times"):
        steps.wait()
    assert not list(run.checkpoints.glob(".staging-*"))


def test_the_writer_keeps_the_run_lock_until_its_commit_is_done(run: RunDir) -> None:
    """A worker that is killed right after a snapshot: its writer finishes, and only then the run is free."""
    code = """
import os, sys, torch
from pathlib import Path
from scaler_wizard.models.tensor_files import TensorFile
from scaler_wizard.runs.step_checkpoints import StepCheckpoints
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace
steps = StepCheckpoints(RunDir(Path(sys.argv[1])), 1, 60.0)
steps.begin("P1", 1, lambda: {"w": TensorFile({"w": torch.ones(5_000_000)})})
os.kill(os.getpid(), 9)
"""
    with RunLock.acquire(run.lock) as lock:
        assert inherited_descriptors(run.lock) == (lock.fileno(),)
        worker = subprocess.Popen([sys.executable, "-c", code, str(run.path)], pass_fds=[lock.fileno()])
    assert worker.wait() == -signal.SIGKILL
    store = CheckpointStore(run)
    assert is_locked(run.lock), "20 MB are not written within the time a wait takes"
    with pytest.raises(WorkspaceBusyError):
        RunLock.acquire(run.lock)
    until = time.monotonic() + 30
    while is_locked(run.lock) and time.monotonic() < until:
        time.sleep(0.01)
    with RunLock.acquire(run.lock):
        found = store.newest_verified().checkpoint
        assert found is not None
        assert (found.kind, found.step) == ("step", 1)


def test_a_request_cannot_leave_its_checkpoint(run: RunDir) -> None:
    for name in ("../../evil", "/etc/evil", "a/../../b", ".hidden"):
        parts, size = place({name: 4})
        answers: list[bytes] = []
        request = WriteRequest("P1", 1, size, parts, {})
        serve(CheckpointStore(run), [request.line()], lambda n: memoryview(bytes(n)), answers.append)
        assert "cannot be used as a file name" in WriteAnswer.parse(answers[0]).found
    assert not list(run.path.parent.glob("evil*"))


def test_nothing_is_left_behind(run: RunDir) -> None:
    steps = StepCheckpoints(run, 1, every_sec=60.0)
    steps.begin("P1", 1, files)
    steps.close()
    assert children() == []
    assert not steps.busy
    assert CheckpointStore(run).head().step == "P1-0002", "close lets the commit finish"


# In a run


def test_a_training_is_saved_beside_and_continued_from_its_newest_step(bench: Any, counting: Any) -> None:
    bench.checkpoint_every_sec = 0.01

    def killed(step: int) -> None:
        # Not at a fixed step: on a busy machine the writer takes its time to start.
        if bench.events("step_saved") or step == 190:
            raise KeyError("killed here")

    with pytest.raises(KeyError):
        bench.execute(counting(losses=[2.0] * 200, pace=0.1, before_step=killed))
    saved = bench.events("step_saved")
    assert saved
    assert all(event.snapshot_seconds < 0.1 for event in saved)
    newest = CheckpointStore(bench.run_dir).newest_verified().checkpoint
    assert newest is not None
    assert newest.step >= saved[-1].step > 0
    again = counting(losses=[2.0] * 200)
    assert bench.execute(again, attempt=2).status == "completed"
    assert again.weight == 200
    first = [event.step for event in bench.events("step") if event.seq > bench.events("run_started")[1].seq]
    assert first[0] == newest.step + 1


def test_a_full_disk_pauses_the_run_and_with_space_it_goes_on(
    tmp_path: Path, bench: Any, counting: Any
) -> None:
    folder = tmp_path / "disk"
    unmount = mount_small(folder)
    try:
        bench.run_dir = Workspace.create(folder / "space").new_run_dir("full")
        bench.checkpoint_every_sec = 0.01
        recipe = counting(losses=[2.0] * 200, pace=0.05)

        def grow(step: int) -> None:
            recipe.ballast = 2_500_000 if step > 5 else 100_000

        recipe.before_step = grow
        outcome = bench.execute(recipe)
        assert outcome.status == "paused", outcome
        assert "No space left on device" in outcome.reason
        assert "free some space" in outcome.advice
        before = CheckpointStore(bench.run_dir).newest_verified()
        assert before.checkpoint is not None
        assert before.quarantined == ()
        assert bench.events("run_ended")[-1].status == "paused"
        subprocess.run(["mount", "-o", "remount,size=32m", str(folder)], check=True)
        again = counting(losses=[2.0] * 20, ballast=2_500_000)
        assert bench.execute(again, attempt=2).status == "completed"
        assert again.weight == 20
    finally:
        unmount()


def test_a_disk_full_at_the_end_of_a_phase_pauses_too(tmp_path: Path, bench: Any, counting: Any) -> None:
    folder = tmp_path / "disk"
    unmount = mount_small(folder)
    try:
        bench.run_dir = Workspace.create(folder / "space").new_run_dir("full")
        outcome = bench.execute(counting(ballast=3_000_000))
        assert outcome.status == "paused"
        assert "phase P0 could not be written (No space left on device)" in outcome.reason
    finally:
        unmount()


def test_memory_that_runs_out_elsewhere_ends_the_run_in_words(bench: Any, counting: Any) -> None:
    def exhausted(step: int) -> None:
        raise MemoryError("cannot allocate 5 GB")

    outcome = bench.execute(counting(before_step=exhausted))
    assert outcome.status == "failed"
    assert "memory ran out" in outcome.reason
    assert "scaler resume" in outcome.advice
    assert bench.events("run_ended")[-1].reason == outcome.reason
