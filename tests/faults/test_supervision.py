"""Workers that stop, hang, escape or keep dying, with real processes and the real host."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.jobs.prepare import parse_job
from scaler_wizard.jobs.service import Service
from scaler_wizard.jobs.sweep import find_processes, kill_all
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.hardware import FAKES
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.planning.plan import make_plan
from scaler_wizard.safety.contract import sign
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store.lock import is_locked
from scaler_wizard.store.workspace import Workspace

PYTHON = sys.executable
DEADLOCK = (
    "import faulthandler, signal, threading\n"
    "faulthandler.register(signal.SIGUSR1, all_threads=True)\n"
    "def waits_for_ever():\n    lock = threading.Lock()\n    lock.acquire()\n    lock.acquire()\n"
    "waits_for_ever()\n"
)
Workers = Callable[[str], None]


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


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workers:
    """workers(script) puts a shell script in the interpreter's place for workers that start from now on."""

    def use(text: str) -> None:
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return use


@pytest.fixture
def service(workspace: Workspace) -> Iterator[Service]:
    with Service(workspace, config()) as service:
        yield service
        for run in service.handle({"op": "runs"})["runs"]:
            kill_all(run["run"], workspace.root)
        for worker in service.workers.attached.values():
            if worker.process is not None:
                worker.process.wait()


def config(**limits: float) -> ContinualConfig:
    return ContinualConfig.model_validate(
        {
            "model": {"base_model": "seedling"},
            "disk": {"refuse_below_gb": 0, "warn_below_gb": 0},
            "queue": {"restarts": 2, "restart_window_sec": 300, "retries": 1},
            "watchdog": limits,
        }
    )


def show(service: Service, run: str) -> dict[str, Any]:
    return service.handle({"op": "show", "run": run})


def dispatch_until(service: Service, ready: Callable[[], Any], seconds: float = 30.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < until, "waited too long"
        service.dispatch()
        time.sleep(0.02)
    return found


def kinds(service: Service, run: str) -> list[str]:
    return [event["kind"] for event in show(service, run)["history"]]


def test_a_stopped_worker_is_killed_replaced_and_writes_nothing_when_it_wakes(
    service: Service, workers: Workers, request_of: dict[str, Any]
) -> None:
    workers("exec sleep 60")
    service.configure(config(load=0.3))
    run = service.handle(request_of)["run"]
    service.dispatch()
    first = service.workers.attached[run].process
    assert first is not None
    os.kill(first.pid, signal.SIGSTOP)
    dispatch_until(service, lambda: len(show(service, run)["attempts"]) == 2)
    assert first.poll() == -signal.SIGKILL, "a stopped process is gone before its successor starts"
    row = show(service, run)
    assert "hung" in row["error"]
    assert "killed" in kinds(service, run)
    late = service.handle({"op": "phase_done", "run": run, "token": 1, "phase": "P0", "checkpoint": "P0-0001",
                           "metrics": {}})  # fmt: skip
    assert late["fenced"] is True
    assert show(service, run)["phases"] == []


def test_a_deadlock_is_found_within_its_limit_and_its_stacks_are_kept(
    service: Service, workers: Workers, request_of: dict[str, Any], workspace: Workspace, tmp_path: Path
) -> None:
    code = tmp_path / "deadlock.py"
    code.write_text(DEADLOCK)
    workers(f"exec {PYTHON} {code}")
    service.configure(config(load=1.0))
    run = service.handle(request_of)["run"]
    evidence = workspace.run_dir(run).path / "evidence" / "attempt-1.txt"
    dispatch_until(service, evidence.exists)
    text = evidence.read_text()
    assert "no progress for" in text
    assert "waits_for_ever" in text
    dispatch_until(service, lambda: len(show(service, run)["attempts"]) == 2)


def test_a_grandchild_that_left_the_session_is_swept_before_the_device_is_used_again(
    service: Service, workers: Workers, request_of: dict[str, Any], workspace: Workspace
) -> None:
    # It closes all that it inherited, the locks too: only its environment tells whose it is.
    code = "import os, time; os.closerange(3, 256); time.sleep(60)"
    workers(f"setsid {PYTHON} -c '{code}' >/dev/null 2>&1 & sleep 0.5; exit 1")
    run = service.handle(request_of)["run"]
    service.dispatch()
    escaped = dispatch_until(
        service, lambda: [p for p in find_processes(run, workspace.root) if "closerange" in p.command]
    )
    dispatch_until(service, lambda: len(show(service, run)["attempts"]) >= 2)
    assert "swept" in kinds(service, run)
    assert escaped[0].pid not in [p.pid for p in find_processes(run, workspace.root)]


def test_a_worker_that_keeps_dying_is_restarted_so_often_and_then_fails_with_the_evidence(
    service: Service, workers: Workers, request_of: dict[str, Any]
) -> None:
    workers("echo 'RuntimeError: CUDA error: an illegal memory access' >&2; exit 1")
    run = service.handle(request_of)["run"]
    dispatch_until(service, lambda: show(service, run)["status"] == "failed")
    row = show(service, run)
    assert [attempt["outcome"] for attempt in row["attempts"]] == ["gave_up", "interrupted", "interrupted"]
    assert "died 3 times" in row["error"]
    assert "illegal memory access" in row["error"]
    assert "nvidia-smi" in row["advice"]
    for _ in range(5):
        service.dispatch()
    assert len(show(service, run)["attempts"]) == 3, "it stays failed"
    service.handle({"op": "command", "run": run, "action": "resume"})
    dispatch_until(service, lambda: len(show(service, run)["attempts"]) == 4)


def test_jobs_that_cannot_start_fail_and_the_next_one_starts(
    service: Service, workers: Workers, request_of: dict[str, Any], workspace: Workspace
) -> None:
    workers("exec sleep 60")
    gone, damaged, good = (service.handle(request_of)["run"] for _ in range(3))
    workspace.run_dir(gone).path.rename(workspace.root / "elsewhere")
    (workspace.run_dir(damaged).path / "plan.json").write_text("{")
    dispatch_until(service, lambda: good in service.workers.attached)
    rows = {row["run"]: row for row in service.handle({"op": "runs"})["runs"]}
    assert rows[gone]["status"] == "failed"
    assert "no run" in rows[gone]["error"]
    assert rows[damaged]["status"] == "failed"
    assert "plan.json" in rows[damaged]["error"]


def test_a_worker_that_cannot_be_started_is_no_endless_story(
    service: Service, request_of: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    run = service.handle(request_of)["run"]
    dispatch_until(service, lambda: show(service, run)["status"] == "failed")
    assert "/nowhere/python" in show(service, run)["error"]


def test_one_worker_on_a_device_and_the_next_job_follows(
    service: Service, workers: Workers, request_of: dict[str, Any], workspace: Workspace
) -> None:
    workers("exec sleep 60")
    first, second = (service.handle(request_of)["run"] for _ in range(2))
    for _ in range(3):
        service.dispatch()
    assert set(service.workers.attached) == {first}
    assert is_locked(workspace.device_lock("cpu"))
    queued = service.handle({"op": "queue"})["queued"]
    assert [(line["run"], line["why"]) for line in queued] == [(second, "cpu is in use")]
    service.handle({"op": "command", "run": first, "action": "skip", "reason": "later"})
    assert service.handle({"op": "beat", "run": first, "token": 1})["command"]["action"] == "abort"
    kill_all(first, workspace.root)
    dispatch_until(service, lambda: second in service.workers.attached)
    assert show(service, first)["status"] == "skipped"


def test_a_new_host_takes_over_and_its_watchdog_covers_the_adopted_worker(
    service: Service, workers: Workers, request_of: dict[str, Any], workspace: Workspace
) -> None:
    workers("exec sleep 60")
    run = service.handle(request_of)["run"]
    service.dispatch()
    worker = service.workers.attached.pop(run)  # the host is gone, its worker lives
    assert worker.process is not None
    with Service(workspace, config(load=0.5)) as another:
        another.dispatch()
        assert another.workers.attached[run].process is None
        assert worker.process.poll() is None
        until = time.monotonic() + 20
        while len(show(another, run)["attempts"]) == 1:
            worker.process.poll()  # this test process is its parent, a dead host would not be
            assert time.monotonic() < until
            another.dispatch()
            time.sleep(0.02)
        assert "hung" in show(another, run)["error"]
        kill_all(run, workspace.root)
        for successor in another.workers.attached.values():
            if successor.process is not None:
                successor.process.wait()
