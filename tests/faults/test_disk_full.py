"""A disk that is really full: a small file system in memory, filled to its last block while work goes on.

In a save, in the database, in the logs. Needs the right to mount; where that is missing, the same faults are
met through `store/faulty.py` in test_checkpoint_faults.py and tests/unit/runs/test_step_checkpoints.py.
"""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaler_wizard.errors import WorkspaceError
from scaler_wizard.jobs.prepare import parse_job
from scaler_wizard.jobs.service import Service
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.hardware import FAKES
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import make_plan
from scaler_wizard.safety.contract import sign
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store import flightlog
from scaler_wizard.store.ballast import Ballast
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.workspace import Workspace

SIZE_MB = 24


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=700", "scaler-test", name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def take(path: Path, block: int) -> None:
    """Write until there is no space for a block."""
    with path.open("ab", buffering=0) as file:
        while file.write(bytes(block)):
            pass


def fill(disk: Path) -> Path:
    """Take every block that is left; the file that holds them."""
    for block in (1 << 20, 1 << 12):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            take(disk / "filler", block)
    return disk / "filler"


def test_a_run_pauses_and_goes_on_when_there_is_space(
    harness: ModuleType, small_disk: Path, material: tuple[ContinualConfig, Path],
    undisturbed: dict[str, str],
) -> None:  # fmt: skip
    workspace = Workspace.create(small_disk / "w")
    run = harness.drop(workspace, *material)
    with harness.hosted(workspace) as host:
        harness.start(host, run)
        harness.wait_for(lambda: len(harness.events(run, "step")) >= 4, "four steps")
        worker = host.service.workers.attached[run.id].process
        filler = fill(small_disk)
        harness.wait_for(lambda: worker.poll() is not None, "the worker to end")
        # On a disk without a free block not even that can be noted: the host does so when there is room.
        assert host.call("alive", run=run.id)["alive"]
        filler.unlink()
        row = harness.finish(host, run)
        assert row["status"] == "paused", row
        assert "full" in row["error"], row
        assert "space" in row["advice"], row
        found = CheckpointStore(run).newest_verified()
        assert found.checkpoint is not None
        assert found.quarantined == (), "what was committed before is whole"
        harness.start(host, run)
        assert harness.finish(host, run)["status"] == "completed"
    assert harness.digests(run.export / "adapter", ".safetensors") == undisturbed


@pytest.fixture
def request_of() -> dict[str, Any]:
    """The request that creates a signed run."""
    job = parse_job(
        {
            "name": "small", "model": {"base_model": "seedling"}, "scaling": {"target_context": 256},
            "dataset": {"source": "synthetic", "identifier": "seedling"},
        },
        Path.cwd(),
    )  # fmt: skip
    job = sign(job, "A Person", None, None, datetime.now(UTC), "a sitting")
    plan = make_plan(job, FAKES["two_cores"], read_facts(resolve_model("seedling")))
    return {"op": "create", "job": job.model_dump(mode="json", by_alias=True), "plan": plan.as_dict()}


def test_what_a_person_asks_for_is_written_down_on_a_full_disk(
    small_disk: Path, request_of: dict[str, Any]
) -> None:
    """The ballast is given up for it; without ballast nothing is half written."""
    workspace = Workspace.create(small_disk / "w")
    config = ContinualConfig.model_validate({"model": {"base_model": "seedling"}, "disk": {"ballast_mb": 2}})
    with Service(workspace, config) as service:
        run = service.handle(request_of)["run"]
        ballast = Ballast(workspace.root, 2)
        assert ballast.reserve()
        fill(small_disk)
        # Each note takes a little of the database's log, until there is no block left in it.
        for number in range(400):
            service.handle(
                {"op": "set_priority", "run": run, "priority": ("high", "low")[number % 2], "by": "a test"}
            )
            if not ballast.is_held():
                break
        assert not ballast.is_held(), "the reserve was needed"
        service.handle({"op": "command", "run": run, "action": "pause", "reason": "the disk is full"})
        assert service.handle({"op": "show", "run": run})["status"] == "paused"
    with Service(workspace) as again:
        assert again.handle({"op": "show", "run": run})["status"] == "paused"
        assert again.database.quick_check() == "ok"


def test_without_a_reserve_a_full_disk_is_told_and_nothing_is_half_written(
    small_disk: Path, request_of: dict[str, Any]
) -> None:
    workspace = Workspace.create(small_disk / "w")
    with Service(workspace) as service:
        run = service.handle(request_of)["run"]
        filler = fill(small_disk)
        done, refused = 0, None
        while refused is None:
            assert done < 400
            try:
                service.handle({"op": "set_priority", "run": run, "priority": ("high", "low")[done % 2]})
                done += 1
            except WorkspaceError as error:
                refused = error
        assert "space" in refused.found
        assert "free some" in refused.todo
        shown = service.handle({"op": "show", "run": run})
        assert shown["priority"] == ("high", "low")[(done - 1) % 2] if done else "normal"
        assert len([event for event in shown["history"] if event["kind"] == "priority"]) == done
        long = {"text": "x" * 100_000}
        with pytest.raises(WorkspaceError, match="flight log"):
            flightlog.append(workspace.flight_log, "test", run, long)
        assert flightlog.verify(workspace.flight_log).ok, "only whole lines"
        filler.unlink()
        service.handle({"op": "command", "run": run, "action": "pause"})
        flightlog.append(workspace.flight_log, "test", run, {})
        assert flightlog.verify(workspace.flight_log).ok
        assert service.database.quick_check() == "ok"
