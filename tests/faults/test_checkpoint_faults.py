"""Every way a checkpoint commit, rollback or recovery can be cut short, on the real code.

Each test prints how many states it enumerated and how many lost something; `SCALER_FAULT_SEED` repeats a run.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from scaler_wizard.errors import CheckpointError
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.faulty import LOSSES, FaultyFileSystem, SimulatedCrash
from scaler_wizard.store.rundir import RunDir

SEED = int(os.environ.get("SCALER_FAULT_SEED", random.SystemRandom().randrange(1 << 32)))
# Seeded mixtures of lost and kept changes per crash point, beside the pure ones; `make soak` takes more.
MIXES = int(os.environ.get("SCALER_FAULT_MIXES", "2"))


@pytest.fixture
def workdir(tmp_path):
    """A directory in memory where there is one: power loss is simulated, so a real fsync only takes time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="scaler-faults-", dir=memory))
    yield path
    shutil.rmtree(path)


def commit(store, phase, kind="phase"):
    """Stage files as a tensor library would, unsynced, with content that the phase and kind determine."""
    with store.stage(phase) as staging:
        (staging.path / "adapter").mkdir()
        for name, content in expected_files(phase, kind).items():
            (staging.path / name).write_bytes(content)
        return staging.commit(step=7, metrics={"loss": 1.0}, kind=kind)


def expected_files(phase, kind):
    return {
        "adapter/model.safetensors": f"weights of {phase} {kind} ".encode() * 50,
        "optimizer.safetensors": f"moments of {phase} {kind} ".encode() * 50,
    }


def store_on(path, fs=None):
    return CheckpointStore(RunDir(path), fs)


@dataclass(frozen=True)
class Operation:
    """`act` leads from a verified checkpoint in `before` to one in `after`; both by (phase, kind)."""

    setup: Callable[[CheckpointStore], object]
    act: Callable[[CheckpointStore], object]
    before: tuple[str, str] | None
    after: tuple[str, str]


def two_phases(store):
    commit(store, "P0")
    commit(store, "P1")


def damaged_newest(store):
    two_phases(store)
    (store.directory / "P1-0002" / "optimizer.safetensors").write_bytes(b"torn")
    (store.directory / ".staging-P2-dead").mkdir()


def rolled_back(store):
    two_phases(store)
    store.rollback("P0")


def superseded_steps(store):
    commit(store, "P0")
    for _ in range(3):
        commit(store, "P1", "step")
    commit(store, "P1")


P0, P1 = ("P0", "phase"), ("P1", "phase")
OPERATIONS = {
    "first commit": Operation(lambda store: None, lambda store: commit(store, "P0"), None, P0),
    "commit": Operation(two_phases, lambda store: commit(store, "P2"), P1, ("P2", "phase")),
    "recommit": Operation(two_phases, lambda store: commit(store, "P0"), P1, P0),
    "step commit": Operation(two_phases, lambda store: commit(store, "P2", "step"), P1, ("P2", "step")),
    "rollback": Operation(two_phases, lambda store: store.rollback("P0"), P1, P0),
    "undo": Operation(rolled_back, lambda store: store.undo_rollback(), P0, P1),
    "prune": Operation(superseded_steps, lambda store: store.prune(), P1, P1),
    "recovery": Operation(damaged_newest, lambda store: store.newest_verified(), P0, P0),
}


def found_in(path):
    """What a restarted worker finds: (phase, kind), or None for "nothing yet". Bytes are compared anew."""
    checkpoint = store_on(path).newest_verified().checkpoint
    if checkpoint is None:
        return None
    for name, content in expected_files(checkpoint.phase, checkpoint.kind).items():
        assert (checkpoint.path / name).read_bytes() == content, f"{checkpoint.name} is corrupt"
    return checkpoint.phase, checkpoint.kind


def states_after_crashes(operation, workdir, file_system=FaultyFileSystem, losses=LOSSES):
    """Yield (description, path, acknowledged) of each state after a crash at each call of `operation`."""
    rng = random.Random(SEED)
    template = workdir / "template"
    (template / "checkpoints").mkdir(parents=True)
    operation.setup(store_on(template))
    for fault in ("crash", "torn_crash"):
        for call in count():
            tree = workdir / f"{fault}-{call}"
            shutil.copytree(template, tree)
            fs = file_system(tree, call, fault)
            acknowledged = False
            try:
                operation.act(store_on(tree, fs))
                acknowledged = not fs.crashed
            except SimulatedCrash:
                pass
            for loss in (*losses, *("mixed",) * (MIXES - 1 if "mixed" in losses else 0)):
                after = workdir / "after"
                fs.power_loss(after, loss, rng)
                yield f"{fault} at call {call} ({fs.calls[-1]}), {loss}", after, acknowledged
                shutil.rmtree(after)
            fs.close()
            shutil.rmtree(tree)
            if acknowledged:
                break


def lost_states(operation, workdir, **options):
    """(number of states, descriptions of those that lost something)."""
    number, lost = 0, []
    for description, path, acknowledged in states_after_crashes(operation, workdir, **options):
        number += 1
        allowed = [operation.after] if acknowledged else [operation.before, operation.after]
        try:
            found = found_in(path)
            if found not in allowed:
                lost.append(f"{description}: found {found}")
                continue
            again = FaultyFileSystem(path)  # no fault, and no real fsync: only whether work can go on
            commit(store_on(path, again), "P3")
            again.close()
            assert found_in(path) == ("P3", "phase")
        except (CheckpointError, AssertionError) as error:
            lost.append(f"{description}: {error}")
    return number, lost


@pytest.mark.parametrize("name", OPERATIONS)
def test_crash_and_power_loss_at_every_call(name, workdir, capsys):
    number, lost = lost_states(OPERATIONS[name], workdir)
    with capsys.disabled():
        print(f"\n[faults] {name}: {number} states, {len(lost)} lost (seed {SEED})", end="")
    assert lost == []
    assert number > 40


class WithoutDirectorySync(FaultyFileSystem):
    def fsync(self, path: Path) -> None:
        if not path.is_dir():
            super().fsync(path)


class WithoutFileSync(FaultyFileSystem):
    def fsync(self, path: Path) -> None:
        if path.is_dir():
            super().fsync(path)


@pytest.mark.parametrize("weaker", [WithoutDirectorySync, WithoutFileSync])
def test_the_enumeration_finds_the_loss_when_a_sync_is_left_out(weaker, workdir, capsys):
    number, lost = lost_states(
        OPERATIONS["commit"], workdir, file_system=weaker, losses=("all_unsynced", "data", "names")
    )
    with capsys.disabled():
        print(f"\n[faults] {weaker.__name__}: {number} states, {len(lost)} lost (seed {SEED})", end="")
    assert lost


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", ["first commit", "commit", "step commit", "rollback", "undo"])
def test_failing_disk_at_every_call(name, fault, workdir, capsys):
    """The call fails, the process lives on: told as an error, nothing lost, and the next try works."""
    operation = OPERATIONS[name]
    template = workdir / "template"
    (template / "checkpoints").mkdir(parents=True)
    operation.setup(store_on(template))
    for call in count():
        tree = workdir / str(call)
        shutil.copytree(template, tree)
        fs = FaultyFileSystem(tree, call, fault)
        store = store_on(tree, fs)
        succeeded = False
        try:
            operation.act(store)
            succeeded = True
        except CheckpointError:
            assert found_in(tree) in (operation.before, operation.after)
            commit(store, "P4")  # the disk is well again
        fs.close()
        assert found_in(tree) == (operation.after if succeeded else ("P4", "phase"))
        if succeeded and len(fs.calls) <= call:  # the fault was never met: every call was tried
            break
    with capsys.disabled():
        print(f"\n[faults] {name}, {fault}: {call} failing calls, 0 lost (seed {SEED})", end="")
    assert call >= 8


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def zero_block(path, rng):
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)


MEDIA = {
    "bit flip": flip,
    "torn write": zero_block,
    "truncation": lambda path, rng: os.truncate(path, rng.randrange(path.stat().st_size)),
    "missing file": lambda path, rng: path.unlink(),
}


def test_media_damage_to_every_file_of_the_newest_checkpoint(workdir, capsys):
    rng = random.Random(SEED)
    template = workdir / "template"
    (template / "checkpoints").mkdir(parents=True)
    two_phases(store_on(template))
    number = 0
    for victim in ("adapter/model.safetensors", "optimizer.safetensors", "manifest.json"):
        for damage in MEDIA.values():
            for _ in range(3):
                tree = workdir / f"tree{number}"
                shutil.copytree(template, tree)
                damage(tree / "checkpoints" / "P1-0002" / victim, rng)
                assert found_in(tree) == P0
                assert (
                    len(list((tree / "checkpoints" / ".quarantine").iterdir())) == 2
                )  # the checkpoint and why
                number += 1
    for head in ("head.json", "head.mirror.json"):
        for damage in MEDIA.values():
            tree = workdir / f"tree{number}"
            shutil.copytree(template, tree)
            damage(tree / "checkpoints" / head, rng)
            assert found_in(tree) == P1
            number += 1
    with capsys.disabled():
        print(f"\n[faults] media damage: {number} states, 0 lost (seed {SEED})", end="")


WORKER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_checkpoint_faults import commit, store_on
from scaler_wizard.store.durable import OsFileSystem

class Killing(OsFileSystem):
    left = int(sys.argv[2])
    def _tick(self):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def mkdir(self, path): self._tick(); super().mkdir(path)
    def write(self, path, data): self._tick(); super().write(path, data)
    def fsync(self, path): self._tick(); super().fsync(path)
    def rename(self, old, new): self._tick(); super().rename(old, new)

store = store_on(Path(sys.argv[1]), Killing() if int(sys.argv[2]) >= 0 else None)
store.newest_verified()
while True:
    print(commit(store, "P1", "step").name, flush=True)
"""


def run_worker(tree, kill_at_call, kill_after_seconds):
    command = [sys.executable, "-c", WORKER, str(tree), str(kill_at_call), str(Path(__file__).parent)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if kill_after_seconds is not None:
        first = worker.stdout.readline()
        time.sleep(kill_after_seconds)
        os.kill(worker.pid, signal.SIGKILL)
        return [first.strip(), *worker.communicate()[0].split()]
    names = worker.communicate()[0].split()
    assert worker.returncode == -signal.SIGKILL
    return names


def test_kill_9_of_a_real_process(tmp_path, capsys):
    """A worker kills itself at seeded calls, or is killed at seeded times; the next one goes on."""
    rng = random.Random(SEED)
    tree = tmp_path / "run"
    (tree / "checkpoints").mkdir(parents=True)
    commit(store_on(tree), "P0")
    plans = [(rng.randrange(60), None) for _ in range(3)] + [(-1, rng.uniform(0, 0.1)) for _ in range(2)]
    newest = 0
    for kill_at_call, seconds in plans:
        acknowledged = run_worker(tree, kill_at_call, seconds)
        assert found_in(tree) in (P0, ("P1", "step"))
        sequence = store_on(tree).newest_verified().checkpoint.sequence
        newest = max([newest, *(int(name.rpartition("-")[2]) for name in acknowledged)])
        assert sequence >= newest, f"acknowledged {newest}, found {sequence} (seed {SEED})"
        newest = sequence
    with capsys.disabled():
        print(f"\n[faults] kill -9: {len(plans)} kills, {newest} commits, 0 lost (seed {SEED})", end="")
