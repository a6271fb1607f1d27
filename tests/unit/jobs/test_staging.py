"""A completed run's version is hashed beside the host, and its lineage waits for it."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from scaler_wizard.jobs.lineage import note_parent
from scaler_wizard.jobs.service import Service
from scaler_wizard.jobs.workers import Worker
from scaler_wizard.safety.contract import sign
from scaler_wizard.specs.continual import ContinualConfig, FileSection
from scaler_wizard.store import attempts, queries, versions
from scaler_wizard.store.lock import boot_id
from scaler_wizard.store.records import Host
from scaler_wizard.store.rundir import ExitStatus, RunDir
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.workspace import Workspace

# Holes cost no disk, but are hashed: a quarter of a second and more.
BIG = 256 << 20


@pytest.fixture
def run_dir(workspace: Workspace, service: Service) -> RunDir:
    """A continual run whose worker has just completed, having exported a whole model."""
    config = sign(
        ContinualConfig.parse({"model": {"base_model": "seedling"}}), "A Person", None, None,
        datetime.now(UTC), "a sitting",
    )  # fmt: skip
    made = workspace.new_run_dir("rows")
    job = config.job("rows", FileSection(path="rows.jsonl", name="rows.jsonl", sha256="0" * 64))
    values = job.model_dump(mode="json", by_alias=True)
    service.handle({"op": "enqueue", "run": made.id, "job": values, "lineage": "assistant"})
    with service.database.session() as connection:
        note_parent(connection, workspace, queries.get_run(connection, made.id), made)
        host = Host("here", os.getpid(), boot_id())
        attempt = attempts.start_attempt(connection, made.id, host, time.time())
    folder = made.export / "full"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(BIG)
    end(made, {"full": str(folder)}, attempt.number)
    service.workers.attached[made.id] = Worker(made.id, attempt.number, "cpu", "assistant", None)
    return made


def end(run_dir: RunDir, export: dict[str, Any], attempt: int) -> None:
    run_dir.write_result({"version": {"promote": True}, "export": export})
    run_dir.write_exit_status(ExitStatus(attempt, "completed", "", "", time=time.time()))


def reap_until_ended(service: Service, run_dir: RunDir) -> int:
    """Looks that came back while the version was not ready."""
    looks, until = 0, time.monotonic() + 60
    while run_dir.id in service.workers.attached and time.monotonic() < until:
        service.reap()
        looks += 1
        time.sleep(0.01)
    return looks


def test_the_host_goes_on_while_a_version_is_hashed(
    workspace: Workspace, service: Service, run_dir: RunDir
) -> None:
    service.reap()
    assert run_dir.id in service.workers.attached, "it came back before 256 MB were hashed"
    (living,) = service.workers.live(time.monotonic() + 1e6)
    assert (living.lineage, living.activity, living.silent_sec) == ("assistant", "save", 0.0)
    assert living.device != "cpu", "another lineage may start meanwhile"
    with service.database.session() as connection:
        assert versions.current(connection, "assistant") is None
    assert reap_until_ended(service, run_dir) > 1
    with service.database.session() as connection:
        version = versions.current(connection, "assistant")
        run = queries.get_run(connection, run_dir.id)
    assert version is not None
    assert (version.number, version.run_id, run.status) == (1, run_dir.id, RunStatus.COMPLETED)


def test_what_cannot_be_staged_fails_the_run(service: Service, run_dir: RunDir) -> None:
    end(run_dir, {"full": "/etc"}, 1)
    reap_until_ended(service, run_dir)
    with service.database.session() as connection:
        run = queries.get_run(connection, run_dir.id)
    assert run.status == RunStatus.FAILED
    assert "names /etc" in (run.error or "")
