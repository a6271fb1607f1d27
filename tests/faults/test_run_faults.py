"""Runs that are killed, paused, or fail a length: what was committed stays, and what follows is the same.

Real host, real worker processes, real SIGKILL. "The same" is meant literally: on one CPU thread the adapter
of a run that was cut into attempts has the bytes of one that was not.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scaler_wizard.report.record import load_record
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace

STEPS = 24
PHASES = ["P0", "P1", "P2", "P4"]


@pytest.fixture(scope="module")
def job(harness: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny Llama from 128 to 256 tokens, with a P1 long enough to be interrupted in."""
    folder = tmp_path_factory.mktemp("material")
    model = harness.save_tiny(folder / "model", "llama")
    rows, texts = harness.write_messages(folder / "rows.jsonl"), harness.write_texts(folder / "t.txt")
    return harness.job_value(
        model, scaling={"target_context": 256}, training={"max_steps": STEPS},
        dataset={"source": "local", "identifier": str(rows), "text_file": str(texts)},
        export={"merged": False},
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(
    harness: ModuleType, job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Hashes of the adapter that the job gives when nothing happens."""
    run = harness.create(Workspace.create(tmp_path_factory.mktemp("whole") / "w"), job)
    assert harness.attempt(run) == 0, run.exit_status()
    found: dict[str, str] = harness.digests(run.export, ".safetensors")
    assert set(found) == {"adapter/adapter_model.safetensors"}
    return found


def seen(harness: ModuleType, run: RunDir, kind: str, phase: str, count: int = 1) -> bool:
    """Whether so many events of a kind were written for a phase."""
    matching = [
        e for e in harness.events(run, kind) if phase in (getattr(e, "phase", ""), getattr(e, "gate", ""))
    ]
    return len(matching) >= count


def resumed_at(harness: ModuleType, run: RunDir) -> list[str | None]:
    """Where each attempt started."""
    return [event.resumed_at for event in harness.events(run, "run_started")]


def test_killed_in_training_and_after_a_phase(
    harness: ModuleType, workspace: Workspace, job: dict[str, Any], uninterrupted: dict[str, str]
) -> None:
    run = harness.create(workspace, job)
    with harness.hosted(workspace) as host:
        for kind, count in (("step", 5), ("phase_done", 1)):
            harness.start(host, run)
            harness.wait_for(lambda k=kind, n=count: seen(harness, run, k, "P1", n), f"{kind} in P1")
            harness.kill(harness.worker_pid(run))
            row = harness.finish(host, run)
            assert row["status"] == "failed"
            assert "SIGKILL" in row["error"]
            assert "scaler resume" in row["advice"]
        harness.start(host, run)
        assert harness.finish(host, run)["status"] == "completed"
    assert resumed_at(harness, run) == [None, "P0-0001", "P1-0002"]
    # The attempt that was killed in P1 left steps behind; the next one trained P1 from its beginning.
    steps = [event.step for event in harness.events(run, "step") if event.phase == "P1"]
    assert steps[-STEPS:] == list(range(1, STEPS + 1))
    assert len(steps) > STEPS
    assert [event.phase for event in harness.events(run, "phase_done")] == PHASES
    assert harness.digests(run.export, ".safetensors") == uninterrupted


def test_killed_between_a_commit_and_its_event(
    harness: ModuleType, workspace: Workspace, job: dict[str, Any], uninterrupted: dict[str, str]
) -> None:
    """What is on the disk then: P1's checkpoint, and events that end before they tell of it."""
    run = harness.create(workspace, job)
    run.write_until("P1")
    assert harness.attempt(run) == 0
    lines = run.events.read_bytes().splitlines(keepends=True)
    (end,) = (at for at, line in enumerate(lines) if b'"type":"phase_done","phase":"P1"' in line)
    run.events.write_bytes(b"".join(lines[:end]))
    run.write_until(None)
    assert harness.attempt(run, 2) == 0
    assert harness.digests(run.export, ".safetensors") == uninterrupted
    done = harness.events(run, "phase_done")
    assert [event.phase for event in done] == PHASES
    assert done[1].metrics == harness.phase_metrics(run)["P1"]
    begun = next(event.time for event in harness.events(run, "phase_started") if event.phase == "P1")
    assert 0 < done[1].seconds < done[1].time - begun
    assert [phase.checkpoint for phase in load_record(run.path).phases] == [e.checkpoint for e in done]


def test_host_and_worker_killed_at_a_gate(
    harness: ModuleType, workspace: Workspace, job: dict[str, Any], uninterrupted: dict[str, str]
) -> None:
    run = harness.create(workspace, job)
    killed_with_host(harness, workspace, run, "gate_opened", "P2")
    again = harness.command_line(workspace, "resume", run.id)
    output = again.communicate(timeout=harness.WAIT_SEC)[0].decode()
    assert again.returncode == 0, output
    assert harness.digests(run.export, ".safetensors") == uninterrupted
    assert resumed_at(harness, run) == [None, "P1-0002"]


def killed_with_host(harness: ModuleType, workspace: Workspace, run: RunDir, kind: str, phase: str) -> None:
    """Host a run with the command line and kill both processes once an event is there."""
    before = len(harness.events(run, "run_started"))
    host = harness.command_line(workspace, "resume", run.id)
    harness.wait_for(lambda: len(harness.events(run, "run_started")) > before, "a new attempt")
    harness.wait_for(lambda: seen(harness, run, kind, phase), f"{kind} of {phase}")
    pid = harness.worker_pid(run)
    harness.kill(host.pid)
    harness.kill(pid)
    host.communicate()


def test_pause_continues_at_the_very_next_step(
    harness: ModuleType, workspace: Workspace, job: dict[str, Any], uninterrupted: dict[str, str]
) -> None:
    run = harness.create(workspace, job)
    with harness.hosted(workspace) as host:
        harness.start(host, run)
        harness.wait_for(lambda: seen(harness, run, "step", "P1", 3), "three steps")
        answer = host.call("command", run=run.id, action="pause", by="a test")
        assert "sent to" in answer["message"]
        assert harness.finish(host, run)["status"] == "paused"
        done = len(harness.events(run, "step"))
        assert 3 <= done < STEPS
        head = CheckpointStore(run).head()
        assert head.step is not None
        assert CheckpointStore(run).verify(head.step).step == done
        harness.start(host, run)
        assert harness.finish(host, run)["status"] == "completed"
    steps = [event.step for event in harness.events(run, "step")]
    assert steps == list(range(1, STEPS + 1))
    assert resumed_at(harness, run) == [None, head.step]
    assert harness.digests(run.export, ".safetensors") == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["worker", "worker and host"])
@pytest.mark.parametrize(
    ("kind", "phase", "start"),
    [
        ("phase_done", "P0", "P0-0001"),
        ("phase_started", "P1", "P0-0001"),
        ("phase_done", "P1", "P1-0002"),
        ("gate_opened", "P2", "P1-0002"),
        ("gate_closed", "P2", "P1-0002"),
        ("phase_started", "P2", "P1-0002"),
        ("phase_done", "P2", "P2-0003"),
        ("gate_opened", "P4", "P2-0003"),
        ("phase_started", "P4", "P2-0003"),
        ("phase_done", "P4", "P4-0004"),
    ],
)
def test_killed_at_every_boundary(
    kind: str, phase: str, start: str, both: bool, harness: ModuleType, workspace: Workspace,
    job: dict[str, Any], uninterrupted: dict[str, str],
) -> None:  # fmt: skip
    run = harness.create(workspace, job)
    if both:
        killed_with_host(harness, workspace, run, kind, phase)
    with harness.hosted(workspace) as host:
        if not both:
            harness.start(host, run)
            harness.wait_for(lambda: seen(harness, run, kind, phase), f"{kind} of {phase}")
            harness.kill(harness.worker_pid(run))
            harness.finish(host, run)
        harness.start(host, run)
        assert harness.finish(host, run)["status"] == "completed"
    first, second = resumed_at(harness, run)
    # Between the event and the signal the worker may commit one phase more.
    assert first is None
    assert second is not None
    assert second >= start
    assert [event.phase for event in harness.events(run, "phase_done")] == PHASES
    assert harness.digests(run.export, ".safetensors") == uninterrupted


def test_a_length_that_does_not_pass_is_undone(harness: ModuleType, workspace: Workspace) -> None:
    # A trained model without any scaling, held to no rise at all, with one step to learn it in.
    value = harness.job_value(
        scaling={"target_context": 512, "rope_method": "none"},
        evaluation={"epsilon": 0.0, "task_rows": 0}, training={"max_steps": 1, "context_steps": 1},
    )  # fmt: skip
    run = harness.create(workspace, value)
    assert harness.attempt(run) == 0, run.exit_status()
    measured = harness.phase_metrics(run)
    assert list(measured) == ["P0", "P1", "P2", "P4"]  # P3, 512 tokens, is not tried
    failed = measured["P2"]
    assert failed["passed"] is False
    assert failed["steps"] == 1
    assert failed["reasons"]
    assert measured["P4"]["context"] == 128
    result = run.result()
    assert result is not None
    assert result["effective_context"] == 128
    assert result["rope"] == {"method": "none", "factor": 1.0}
    store = CheckpointStore(run)
    weights = {phase: harness.digests(store.checkpoint(phase).path / "adapter") for phase in measured}
    settings = {phase: (store.checkpoint(phase).path / "session.json").read_text() for phase in measured}
    assert weights["P1"] == weights["P2"] == weights["P4"] != weights["P0"]
    assert settings["P1"] == settings["P2"] == settings["P4"]
    exported = harness.digests(Path(result["export"]["adapter"]), ".safetensors")
    assert set(exported.values()) <= set(weights["P1"].values())


def test_a_length_that_passes_trains_zero_steps(
    harness: ModuleType, workspace: Workspace, job: dict[str, Any]
) -> None:
    # Positions hardly matter to a random model: it passes as it is.
    training = {**job["training"], "max_steps": 1, "context_steps": 50}
    run = harness.create(workspace, {**job, "training": training})
    assert harness.attempt(run) == 0, run.exit_status()
    measured = harness.phase_metrics(run)
    assert measured["P2"]["passed"] is True
    assert measured["P2"]["steps"] == 0
    assert [event.phase for event in harness.events(run, "step")] == ["P1"]
    store = CheckpointStore(run)
    before, after = (harness.digests(store.checkpoint(p).path / "adapter") for p in ("P1", "P2"))
    assert before == after
