import dataclasses
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from scaler_wizard.errors import RunNotFoundError, WrongStateError
from scaler_wizard.store import attempts, commands, gates, phases, queries, queue
from scaler_wizard.store.database import Database
from scaler_wizard.store.records import Host, NewRun
from scaler_wizard.store.states import Command, RunStatus

HOST = Host("here", 42, "boot-1")
NEW = NewRun("grow-0001", "uuid-1", "grow", "grow", {"name": "grow", "bad": float("nan")}, "hash")


@pytest.fixture
def connection(database_address):
    with Database.open(database_address) as database, database.session() as connection:
        yield connection


@pytest.fixture
def token(connection):
    """A running run's fencing token."""
    queries.create_run(connection, NEW, 1.0)
    token = attempts.start_attempt(connection, NEW.id, HOST, 2.0).number
    queries.set_status(connection, NEW.id, RunStatus.RUNNING, 3.0, token=token)
    return token


def test_create_and_read(connection):
    run = queries.create_run(connection, NEW, 1.5)
    assert run == queries.get_run(connection, NEW.id)
    assert (run.status, run.created, run.job) == (RunStatus.QUEUED, 1.5, {"name": "grow", "bad": None})
    with pytest.raises(WrongStateError, match="exists already"):
        queries.create_run(connection, NEW, 2.0)
    with pytest.raises(RunNotFoundError, match="none"):
        queries.get_run(connection, "none")
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.status = RunStatus.RUNNING


def test_next_queued_by_priority_then_age_and_not_before(connection):
    for i, (priority, not_before) in enumerate([(0, 0.0), (5, 100.0), (1, 0.0), (1, 0.0)]):
        new = dataclasses.replace(NEW, id=f"r-{i}", uuid=f"u{i}", priority=priority, not_before=not_before)
        queries.create_run(connection, new, float(i))
    order = []
    for now in (50.0, 50.0, 100.0, 100.0):
        run = queue.next_queued(connection, now)
        order.append(run.id)
        attempts.start_attempt(connection, run.id, HOST, now)
    assert order == ["r-2", "r-3", "r-1", "r-0"]
    assert queue.next_queued(connection, 200.0) is None
    assert [run.id for run in queries.list_runs(connection)] == ["r-3", "r-2", "r-1", "r-0"]
    assert queries.list_runs(connection, frozenset({RunStatus.QUEUED})) == ()


def test_a_run_is_claimed_once(connection):
    queries.create_run(connection, NEW, 1.0)
    attempt = attempts.start_attempt(connection, NEW.id, HOST, 2.0)
    assert (attempt.number, attempt.boot_id, attempt.pid) == (1, "boot-1", None)
    with pytest.raises(WrongStateError, match="initializing"):
        attempts.start_attempt(connection, NEW.id, HOST, 2.0)
    run = queries.get_run(connection, NEW.id)
    assert (run.host, run.host_pid, run.host_boot_id) == ("here", 42, "boot-1")
    assert attempts.record_worker(connection, NEW.id, 1, 77).pid == 77


def test_a_stale_token_is_refused_everywhere(connection, token):
    attempts.end_attempt(connection, NEW.id, token, "lease expired", RunStatus.QUEUED, 4.0)
    calls = [
        lambda: attempts.report_heartbeat(connection, NEW.id, token, 9.0),
        lambda: attempts.record_worker(connection, NEW.id, token, 1),
        lambda: queries.set_status(connection, NEW.id, RunStatus.RUNNING, 9.0, token=token),
        lambda: phases.start_phase(connection, NEW.id, token, "P1", 9.0),
        lambda: phases.finish_phase(connection, NEW.id, token, "P1", "done", 9.0),
        lambda: gates.open_gate(connection, NEW.id, token, "g", "s", 9.0, 10.0),
        lambda: attempts.end_attempt(connection, NEW.id, token, "x", RunStatus.COMPLETED, 9.0),
    ]
    for call in calls:  # ended, none newer
        with pytest.raises(WrongStateError, match="has ended"):
            call()
    assert attempts.start_attempt(connection, NEW.id, HOST, 5.0).number == token + 1
    before = queries.get_run(connection, NEW.id)
    for call in calls:  # a newer one owns the run
        with pytest.raises(WrongStateError, match="attempt 1 of run grow-0001 may not write"):
            call()
    assert queries.get_run(connection, NEW.id) == before
    assert attempts.report_heartbeat(connection, NEW.id, 2, 9.0).heartbeat_monotonic == 9.0


def test_status_follows_the_table_and_carries_advice(connection, token):
    with pytest.raises(WrongStateError, match="possible now: pause, stop, rollback"):
        queries.set_status(connection, NEW.id, RunStatus.INITIALIZING, 4.0)
    run = attempts.end_attempt(
        connection, NEW.id, token, "failed", RunStatus.FAILED, 5.0, error="out of memory", advice="rank 4"
    )
    assert (run.status, run.error, run.advice, run.updated) == (
        RunStatus.FAILED,
        "out of memory",
        "rank 4",
        5.0,
    )
    attempt = attempts.latest_attempt(connection, NEW.id)
    assert (attempt.ended, attempt.outcome) == (5.0, "failed")
    assert queries.set_status(connection, NEW.id, RunStatus.QUEUED, 6.0).error is None


def test_phases_and_rollback(connection, token):
    for i, phase in enumerate(("P0", "P1", "P2")):
        phases.start_phase(connection, NEW.id, token, phase, 10.0 + i)
        phases.finish_phase(
            connection, NEW.id, token, phase, "done", 10.5 + i, f"{phase}-000{i}", {"ppl": 3.0}
        )
    assert queries.get_run(connection, NEW.id).phase == "P2"
    run = phases.record_rollback(connection, NEW.id, "P1", "P1-0001", 20.0)
    assert run.phase == "P1"
    found = phases.list_phases(connection, NEW.id)
    assert [(p.phase, p.status) for p in found] == [("P0", "done"), ("P1", "done"), ("P2", "rolled_back")]
    assert found[1].metrics == {"ppl": 3.0}
    again = phases.start_phase(connection, NEW.id, token, "P2", 30.0)
    assert (again.status, again.checkpoint, again.metrics) == ("running", None, {})
    with pytest.raises(WrongStateError, match="no phase P9"):
        phases.record_rollback(connection, NEW.id, "P9", "x", 1.0)


def test_gate_is_answered_once(connection, token):
    gate = gates.open_gate(connection, NEW.id, token, "P2", "Ready?", 10.0, 130.0)
    assert queries.get_run(connection, NEW.id).status == RunStatus.WAITING
    assert gates.open_gate(connection, NEW.id, token, "P2", "Ready?", 50.0, 170.0) == gate
    assert gates.open_gates(connection) == gates.open_gates(connection, NEW.id) == (gate,)
    answer = gates.answer_gate(connection, gate.id, "approve", "ann", "fine", "decision-1", 20.0)
    assert (answer.action, answer.by, answer.reason, answer.answered) == ("approve", "ann", "fine", 20.0)
    assert gates.answer_gate(connection, gate.id, "approve", "ann", "fine", "decision-1", 99.0) == answer
    with pytest.raises(WrongStateError, match="was answered: approve by ann"):
        gates.answer_gate(connection, gate.id, "abort", "bob", "", "decision-2", 30.0)
    with pytest.raises(RunNotFoundError, match="no gate 99"):
        gates.answer_gate(connection, 99, "abort", "bob", "", "decision-3", 30.0)
    assert gates.open_gates(connection) == ()
    again = gates.open_gate(connection, NEW.id, token, "P2", "Ready?", 60.0, 180.0)
    assert gates.newest_gate(connection, NEW.id, "P2") == again
    assert again.id != gate.id
    with pytest.raises(WrongStateError, match=r"decision-1.* answered gate P2 already"):
        gates.answer_gate(connection, again.id, "approve", "ann", "", "decision-1", 70.0)
    back = gates.answer_gate(connection, again.id, "rollback", "ann", "", "decision-4", 70.0, "P1")
    assert back.target_phase == "P1"


def test_commands_are_filed_and_consumed_once(connection, token):
    command = commands.add_command(connection, NEW.id, Command.ROLLBACK, 5.0, "P1", "worse")
    assert commands.add_command(connection, NEW.id, Command.ROLLBACK, 6.0, "P1") == command
    other = commands.add_command(connection, NEW.id, Command.ROLLBACK, 6.0, "P0")
    stop = commands.add_command(connection, NEW.id, Command.STOP, 7.0)
    assert commands.add_command(connection, NEW.id, Command.STOP, 8.0) == stop
    assert commands.pending_commands(connection) == (command, other, stop)
    assert commands.consume_command(connection, command.id, 9.0)
    assert not commands.consume_command(connection, command.id, 9.0)
    assert commands.pending_commands(connection, NEW.id) == (other, stop)
    with pytest.raises(WrongStateError, match="it cannot approve"):
        commands.add_command(connection, NEW.id, Command.APPROVE, 9.0)


def test_history_is_written_with_each_change(connection, token):
    queries.log_event(connection, NEW.id, 9.0, "note", {"text": "x"})
    events = queries.run_history(connection, NEW.id)
    assert [event.kind for event in events] == ["created", "status", "status", "note"]
    assert events[1].data == {"from": "queued", "to": "initializing", "error": None}
    assert queries.run_history(connection, NEW.id, after_id=events[2].id, limit=5) == events[3:]


def test_kill_9_loses_no_acknowledged_run(tmp_path):
    code = (
        "import sys, uuid; from pathlib import Path\n"
        "from scaler_wizard.store import queries; from scaler_wizard.store.database import Database\n"
        "from scaler_wizard.store.records import NewRun\n"
        "with Database.open(Path(sys.argv[1])) as database, database.session() as connection:\n"
        "    while True:\n"
        "        name = str(uuid.uuid4())\n"
        "        queries.create_run(connection, NewRun(name, name, 'r', 'grow', {}, 'h'), 1.0)\n"
        "        print(name, flush=True)"
    )
    acknowledged = set()
    rng = random.Random(11)
    for _ in range(2):
        worker = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "state.db")], stdout=subprocess.PIPE, text=True
        )
        acknowledged.add(worker.stdout.readline().strip())
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(worker.pid, signal.SIGKILL)
        acknowledged.update(line.strip() for line in worker.communicate()[0].splitlines())
    with Database.open(tmp_path / "state.db") as database, database.session() as connection:
        stored = {run.id for run in queries.list_runs(connection, limit=100_000)}
    assert acknowledged <= stored
    assert len(stored) - len(acknowledged) <= 2  # at most the one in flight at each kill
