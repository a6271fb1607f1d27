"""What each request means, on a real workspace with a real database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.errors import (
    CheckpointError,
    ContractNotAcceptedError,
    RunNotFoundError,
    SpecError,
    WorkspaceBusyError,
    WrongStateError,
)
from scaler_wizard.jobs.service import Service
from scaler_wizard.planning.locate import resolve_model
from scaler_wizard.store import flightlog, queries
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.lock import RunLock
from scaler_wizard.store.rundir import ExitStatus, RunDir
from scaler_wizard.store.states import RunStatus
from scaler_wizard.store.workspace import Workspace

Begin = Callable[[str], int]
Commit = Callable[..., None]


def status_of(service: Service, run: str) -> str:
    return str(service.handle({"op": "show", "run": run})["status"])


def command(service: Service, run: str, action: str, **fields: Any) -> dict[str, Any]:
    return service.handle({"op": "command", "run": run, "action": action, "by": "a tester", **fields})


@pytest.fixture
def alive(workspace: Workspace, run_id: str) -> Iterator[RunDir]:
    """The run's directory with its lock held by this process: its worker lives."""
    run_dir = workspace.run_dir(run_id)
    with RunLock.acquire(run_dir.lock):
        yield run_dir


@pytest.fixture
def at_gate(service: Service, run_id: str, begin: Begin, alive: RunDir) -> dict[str, Any]:
    """The fields of a worker's open gate."""
    gate = {
        "run": run_id, "token": begin(run_id), "gate": "P2", "gate_id": "P2-1", "sentence": "Expand?",
        "opened": time.time(), "deadline": time.time() + 60,
    }  # fmt: skip
    service.handle({"op": "gate_opened", **gate})
    return gate


# Creating and looking


def test_a_signed_job_is_queued_with_its_plan(service: Service, run_id: str, workspace: Workspace) -> None:
    run_dir = workspace.run_dir(run_id)
    assert run_id == "small-0001"
    assert run_dir.plan() is not None
    assert run_dir.job()["contract"]["authorized_by"] == "A Person"
    assert [row["run"] for row in service.handle({"op": "runs"})["runs"]] == [run_id]
    assert status_of(service, run_id) == "queued"
    entries = flightlog.read_entries(workspace.flight_log)
    assert [(entry["kind"], entry["run"]) for entry in entries] == [("signature", run_id)]


def test_an_unsigned_job_is_not_created(
    service: Service, request_of: dict[str, Any], workspace: Workspace
) -> None:
    request_of["job"]["contract"] = None
    with pytest.raises(ContractNotAcceptedError):
        service.handle(request_of)
    assert not list(workspace.runs.iterdir())


def test_a_broken_plan_leaves_no_run_behind(
    service: Service, request_of: dict[str, Any], workspace: Workspace
) -> None:
    for plan in (None, {}, {**request_of["plan"], "phases": "none"}):
        with pytest.raises(SpecError, match="plan"):
            service.handle({**request_of, "plan": plan})
    assert not list(workspace.runs.iterdir())


@pytest.mark.parametrize(
    "request_",
    [{}, {"op": 3}, {"op": "destroy"}, {"op": "show"}, {"op": "beat", "run": 7}, {"op": "command"}],
)
def test_a_request_that_means_nothing_is_refused(service: Service, request_: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        service.handle(request_)


def test_an_unknown_run_is_not_found(service: Service) -> None:
    for op in ("show", "command", "start", "undo_rollback"):
        with pytest.raises(RunNotFoundError):
            service.handle({"op": op, "run": "grow-0001", "action": "pause"})


def test_an_unknown_action_is_refused(service: Service, run_id: str) -> None:
    for action in ("explode", None, ["approve"]):
        with pytest.raises(SpecError, match="approve"):
            command(service, run_id, action)  # type: ignore[arg-type]


# Commands in each state


def test_commands_to_a_run_nobody_started(service: Service, run_id: str) -> None:
    with pytest.raises(WrongStateError, match="scaler resume"):
        command(service, run_id, "approve")
    assert "paused" in command(service, run_id, "pause", reason="lunch")["message"]
    assert service.handle({"op": "show", "run": run_id})["error"] == "lunch"
    command(service, run_id, "resume")
    assert status_of(service, run_id) == "queued"
    with pytest.raises(RunNotFoundError, match="no checkpoint"):
        command(service, run_id, "rollback")
    assert "stopped" in command(service, run_id, "abort")["message"]
    assert status_of(service, run_id) == "stopped"


def test_a_command_is_told_a_living_worker_until_it_has_ended(
    service: Service, run_id: str, begin: Begin, alive: RunDir
) -> None:
    token = begin(run_id)
    beat = {"op": "beat", "run": run_id, "token": token}
    assert service.handle(beat) == {}
    assert status_of(service, run_id) == "running"
    assert "next step" in command(service, run_id, "pause", reason="lunch")["message"]
    for _ in range(2):  # a host that died between its commit and its answer must not lose it
        told = service.handle(beat)["command"]
        assert told == {"action": "pause", "reason": "lunch", "target_phase": None}
    alive.write_exit_status(ExitStatus(token, "paused"))
    with service.database.session() as connection:
        service.workers.settle_dead(queries.get_run(connection, run_id))
        assert status_of(service, run_id) == "paused"
        queries.set_status(connection, run_id, RunStatus.QUEUED, 2.0)
    assert service.handle({**beat, "token": begin(run_id)}) == {}, "not the next one"


def test_abort_reaches_the_worker_under_its_own_name(
    service: Service, run_id: str, begin: Begin, alive: RunDir
) -> None:
    beat = {"op": "beat", "run": run_id, "token": begin(run_id)}
    service.handle(beat)
    command(service, run_id, "abort")
    assert service.handle(beat)["command"]["action"] == "abort"


def test_approving_without_a_gate_is_refused_and_files_nothing(
    service: Service, run_id: str, begin: Begin, alive: RunDir
) -> None:
    beat = {"op": "beat", "run": run_id, "token": begin(run_id)}
    service.handle(beat)
    with pytest.raises(WrongStateError, match="no gate is open"):
        command(service, run_id, "approve")
    assert service.handle(beat) == {}


def test_a_command_to_a_run_whose_worker_died_settles_it_first(
    service: Service, run_id: str, begin: Begin, workspace: Workspace
) -> None:
    service.handle({"op": "beat", "run": run_id, "token": begin(run_id)})
    assert status_of(service, run_id) == "interrupted"
    with pytest.raises(WrongStateError, match="no worker is running"):
        command(service, run_id, "pause")
    row = service.handle({"op": "show", "run": run_id})
    assert row["status"] == "failed"
    assert "without an outcome" in row["error"]
    assert "scaler resume" in row["advice"]
    assert "worker_died" in [entry["kind"] for entry in flightlog.read_entries(workspace.flight_log)]


# Gates


def test_a_gate_is_answered_and_the_worker_hears_it(service: Service, at_gate: dict[str, Any]) -> None:
    run = at_gate["run"]
    assert status_of(service, run) == "waiting"
    assert [gate["sentence"] for gate in service.handle({"op": "show", "run": run})["open_gates"]] == [
        "Expand?"
    ]
    assert service.handle({"op": "gate_poll", **at_gate}) == {}
    assert "gate P2" in command(service, run, "approve", decision_id="d1")["message"]
    answer = service.handle({"op": "gate_poll", **at_gate})["answer"]
    assert (answer["action"], answer["by"], answer["gate"]) == ("approve", "a tester", "P2-1")
    service.handle({"op": "gate_closed", **at_gate, "action": "approve", "by": "a tester", "reason": ""})
    assert status_of(service, run) == "running"


def test_the_same_decision_twice_counts_once(service: Service, at_gate: dict[str, Any]) -> None:
    """Before and after the worker has gone on; the repeat must not reach it as a command."""
    run = at_gate["run"]
    first = command(service, run, "approve", decision_id="d1")
    assert command(service, run, "approve", decision_id="d1") == first
    service.handle({"op": "gate_closed", **at_gate, "action": "approve", "by": "a tester", "reason": ""})
    assert command(service, run, "approve", decision_id="d1") == first
    assert service.handle({"op": "beat", "run": run, "token": at_gate["token"]}) == {}


def test_a_second_person_approving_too_does_not_disturb_the_run(
    service: Service, at_gate: dict[str, Any]
) -> None:
    command(service, at_gate["run"], "approve", decision_id="d1")
    with pytest.raises(WrongStateError, match="no gate is open"):
        command(service, at_gate["run"], "approve", decision_id="d2")
    assert service.handle({"op": "beat", "run": at_gate["run"], "token": at_gate["token"]}) == {}


def test_a_gate_opened_while_no_host_was_there_is_learned_from_the_poll(
    service: Service, run_id: str, begin: Begin, alive: RunDir
) -> None:
    gate = {
        "run": run_id, "token": begin(run_id), "gate": "P2", "gate_id": "P2-9", "sentence": "Expand?",
        "opened": time.time(), "deadline": time.time() + 60,
    }  # fmt: skip
    assert service.handle({"op": "gate_poll", **gate}) == {}
    assert status_of(service, run_id) == "waiting"
    command(service, run_id, "approve")
    assert service.handle({"op": "gate_poll", **gate})["answer"]["action"] == "approve"


def test_a_gate_asked_again_is_a_new_question(service: Service, at_gate: dict[str, Any]) -> None:
    command(service, at_gate["run"], "pause")
    again = {**at_gate, "gate_id": "P2-2", "opened": time.time() + 1, "deadline": time.time() + 61}
    assert service.handle({"op": "gate_poll", **again}) == {}, "the old answer is not the new one's"
    assert len(service.handle({"op": "show", "run": at_gate["run"]})["open_gates"]) == 1


def test_a_worker_killed_at_its_gate_leaves_no_open_question(
    service: Service, run_id: str, begin: Begin, workspace: Workspace
) -> None:
    token = begin(run_id)
    service.handle(
        {
            "op": "gate_opened",
            "run": run_id,
            "token": token,
            "gate": "P2",
            "sentence": "?",
            "opened": 1,
            "deadline": 2,
        }
    )
    with pytest.raises(WrongStateError):
        command(service, run_id, "approve")
    row = service.handle({"op": "show", "run": run_id})
    assert (row["status"], row["open_gates"]) == ("failed", [])


# Fencing


def test_a_stale_worker_is_fenced_and_changes_nothing(
    service: Service, run_id: str, begin: Begin, alive: RunDir
) -> None:
    old = begin(run_id)
    service.handle({"op": "beat", "run": run_id, "token": old})
    with service.database.session() as connection:
        queries.set_status(connection, run_id, RunStatus.QUEUED, 2.0)
    new = begin(run_id)
    for op, fields in (
        ("beat", {}),
        ("phase_started", {"phase": "P1"}),
        ("phase_done", {"phase": "P1", "checkpoint": "P1-0001", "metrics": {}}),
        ("gate_opened", {"gate": "P2", "sentence": "?", "opened": 1, "deadline": 2}),
        ("gate_poll", {"gate": "P2", "gate_id": "x", "opened": 1}),
    ):
        answer = service.handle({"op": op, "run": run_id, "token": old, **fields})
        assert answer["fenced"] is True, op
    row = service.handle({"op": "show", "run": run_id})
    assert (row["phases"], row["open_gates"]) == ([], [])
    assert service.handle({"op": "beat", "run": run_id, "token": new}) == {}


def test_a_refusal_that_is_not_fencing_says_so(service: Service, at_gate: dict[str, Any]) -> None:
    command(service, at_gate["run"], "approve", decision_id="d1")
    with service.database.session() as connection:
        queries.set_status(connection, at_gate["run"], RunStatus.STOPPING, 2.0)
    answer = service.handle({"op": "gate_opened", **at_gate})
    assert answer["fenced"] is False
    assert answer["error"] == "WrongStateError"


# The way back


@pytest.fixture
def finished(
    service: Service, run_id: str, begin: Begin, commit_phases: Commit, workspace: Workspace
) -> RunDir:
    """A completed run with real checkpoints P0, P1, P2, whose worker reported P0 only (its host had died)."""
    run_dir = workspace.run_dir(run_id)
    token = begin(run_id)
    service.handle({"op": "phase_started", "run": run_id, "token": token, "phase": "P0"})
    commit_phases(run_dir, "P0")
    service.handle(
        {
            "op": "phase_done",
            "run": run_id,
            "token": token,
            "phase": "P0",
            "checkpoint": "P0-0001",
            "metrics": {},
        }
    )
    commit_phases(run_dir, "P1", "P2")
    merged = run_dir.export / "merged"
    merged.mkdir()
    (merged / "config.json").write_text("{}")
    run_dir.write_result(
        {
            "model": {"path": str(resolve_model("seedling"))},
            "export": {"merged": str(merged)},
            "summary": {"n": 1},
        }
    )
    run_dir.write_exit_status(ExitStatus(token, "completed"))
    service.workers.recover()  # as a host that was not its parent
    return run_dir


def test_a_finished_run_is_completed_with_all_its_phases(service: Service, finished: RunDir) -> None:
    row = service.handle({"op": "show", "run": finished.id})
    assert row["status"] == "completed"
    assert [(phase["phase"], phase["checkpoint"]) for phase in row["phases"]] == [
        ("P0", "P0-0001"), ("P1", "P1-0002"), ("P2", "P2-0003"),
    ]  # fmt: skip
    assert service.handle({"op": "alive", "run": finished.id}) == {"alive": False}


def test_its_models_are_registered_with_their_lineage(service: Service, finished: RunDir) -> None:
    models = service.handle({"op": "models"})["models"]
    base, merged = sorted(models, key=lambda model: model["id"])
    assert base["name"].startswith("seedling-")
    assert (merged["kind"], merged["run_id"], merged["parent_id"]) == ("merged", finished.id, base["id"])
    assert merged["metrics"] == {"n": 1}


def test_rollback_and_undo_over_a_finished_run(
    service: Service, finished: RunDir, workspace: Workspace
) -> None:
    answer = command(service, finished.id, "rollback", target_phase="P1")
    assert answer["message"] == "Rollback complete; you are now at phase 1"
    assert CheckpointStore(finished).head().parent == "P1-0002"
    row = service.handle({"op": "show", "run": finished.id})
    assert row["status"] == "paused"
    assert {phase["phase"]: phase["status"] for phase in row["phases"]} == {
        "P0": "done", "P1": "done", "P2": "rolled_back",
    }  # fmt: skip
    undone = service.handle({"op": "undo_rollback", "run": finished.id})
    assert undone["message"] == "Undo complete; you are now at phase 2"
    assert CheckpointStore(finished).head().parent == "P2-0003"
    kinds = [entry["kind"] for entry in flightlog.read_entries(workspace.flight_log)]
    assert kinds.count("rollback") == 2
    assert flightlog.verify(workspace.flight_log).ok
    assert [event.type for event in finished.read_events()][-2:] == ["rolled_back", "rolled_back"]
    with pytest.raises(CheckpointError, match="no rollback to undo"):
        service.handle({"op": "undo_rollback", "run": finished.id})


def test_rollback_without_a_phase_goes_one_back(service: Service, finished: RunDir) -> None:
    assert command(service, finished.id, "rollback")["message"].endswith("phase 1")
    assert command(service, finished.id, "rollback")["message"].endswith("phase 0")
    assert command(service, finished.id, "rollback")["message"].endswith("phase 0")


def test_rollback_to_a_phase_that_is_not_there_changes_nothing(service: Service, finished: RunDir) -> None:
    with pytest.raises(CheckpointError, match="P0, P1, P2"):
        command(service, finished.id, "rollback", target_phase="P9")
    assert status_of(service, finished.id) == "completed"


def test_rollback_to_a_damaged_checkpoint_changes_nothing(service: Service, finished: RunDir) -> None:
    (finished.checkpoints / "P1-0002" / "weights.txt").write_text("XX")
    with pytest.raises(CheckpointError):
        command(service, finished.id, "rollback", target_phase="P1")
    assert CheckpointStore(finished).head().parent == "P2-0003"
    assert status_of(service, finished.id) == "completed"


def test_a_run_completed_again_registers_its_new_model_too(
    service: Service, finished: RunDir, begin: Begin
) -> None:
    command(service, finished.id, "rollback", target_phase="P1")
    with service.database.session() as connection:
        queries.set_status(connection, finished.id, RunStatus.QUEUED, 2.0)
    token = begin(finished.id)
    (finished.export / "merged" / "config.json").write_text('{"other": 1}')
    finished.write_exit_status(ExitStatus(token, "completed"))
    service.workers.recover()
    assert status_of(service, finished.id) == "completed"
    assert len([m for m in service.handle({"op": "models"})["models"] if m["kind"] == "merged"]) == 2


def test_a_failed_attempt_with_a_rollback_rolls_back(
    service: Service, run_id: str, begin: Begin, commit_phases: Commit, workspace: Workspace
) -> None:
    run_dir = workspace.run_dir(run_id)
    token = begin(run_id)
    commit_phases(run_dir, "P0", "P1")
    run_dir.write_exit_status(
        ExitStatus(token, "failed", "perplexity rises", "lower the rate", rollback_to="P0")
    )
    service.workers.recover()
    row = service.handle({"op": "show", "run": run_id})
    assert (row["status"], row["error"], row["advice"]) == ("failed", "perplexity rises", "lower the rate")
    assert CheckpointStore(run_dir).head().parent == "P0-0001"


def test_a_rollback_that_fails_at_the_end_is_noted_and_the_host_goes_on(
    service: Service, run_id: str, begin: Begin, commit_phases: Commit, workspace: Workspace
) -> None:
    run_dir = workspace.run_dir(run_id)
    token = begin(run_id)
    commit_phases(run_dir, "P0", "P1")
    (run_dir.checkpoints / "P0-0001" / "weights.txt").write_text("XX")
    run_dir.write_exit_status(ExitStatus(token, "paused", rollback_to="P0"))
    service.workers.recover()
    row = service.handle({"op": "show", "run": run_id})
    assert row["status"] == "paused"
    assert "problem" in [event["kind"] for event in row["history"]]


# Starting


@pytest.fixture
def quick_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real process in the worker's place: a shell script that stands for the interpreter and sleeps."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))


def end(worker: subprocess.Popen[bytes] | None) -> None:
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()


@pytest.mark.usefixtures("quick_worker")
def test_a_worker_killed_after_a_pause_leaves_its_run_paused_and_resume_forgets_it(
    service: Service, run_id: str
) -> None:
    assert service.handle({"op": "start", "run": run_id}) == {"attempt": 1, "adopted": False, "run": run_id}
    service.handle({"op": "beat", "run": run_id, "token": 1})
    command(service, run_id, "pause")
    assert service.handle({"op": "alive", "run": run_id}) == {"alive": True}
    end(service.workers.attached[run_id].process)
    service.reap()
    row = service.handle({"op": "show", "run": run_id})
    assert row["status"] == "paused"
    assert "SIGKILL" in row["error"]
    assert service.handle({"op": "start", "run": run_id})["attempt"] == 2
    try:
        # The pause was meant for the worker that died.
        assert service.handle({"op": "beat", "run": run_id, "token": 2}) == {}
    finally:
        end(service.workers.attached[run_id].process)


@pytest.mark.usefixtures("quick_worker")
def test_a_new_host_takes_over_a_living_worker(service: Service, run_id: str, workspace: Workspace) -> None:
    service.handle({"op": "start", "run": run_id})
    worker = service.workers.attached[run_id].process
    try:
        with Service(workspace) as another:
            assert another.handle({"op": "start", "run": run_id}) == {
                "attempt": 1,
                "adopted": True,
                "run": run_id,
            }
            end(worker)
            another.reap()
            assert status_of(another, run_id) == "failed"
    finally:
        if worker is not None and worker.poll() is None:
            end(worker)


def test_a_worker_that_is_still_ending_is_not_doubled(
    service: Service, finished: RunDir, workspace: Workspace
) -> None:
    with RunLock.acquire(finished.lock), pytest.raises(WorkspaceBusyError, match="still ending"):
        service.handle({"op": "start", "run": finished.id})


def test_a_completed_run_is_not_started_again(service: Service, finished: RunDir) -> None:
    with pytest.raises(WrongStateError, match="possible now: rollback"):
        service.handle({"op": "start", "run": finished.id})


def test_answers_are_json(service: Service, finished: RunDir) -> None:
    for op in ("runs", "show", "models", "ping"):
        json.dumps(service.handle({"op": op, "run": finished.id}))
