"""The queue on SQLite and on PostgreSQL: order, duplicates, priorities, what a person takes out."""

import dataclasses

import pytest
from sqlalchemy import create_engine, make_url

from scaler_wizard.errors import WrongStateError
from scaler_wizard.store import attempts, queries, queue
from scaler_wizard.store.database import Database, transaction
from scaler_wizard.store.records import Host, NewRun
from scaler_wizard.store.states import RunStatus

HOST = Host("here", 42, "boot-1")
NEW = NewRun("file-0001", "uuid-1", "file", "continual", {}, "hash")


@pytest.fixture
def connection(database_address):
    with Database.open(database_address) as database, database.session() as connection:
        yield connection


def add(connection, number, **changes):
    new = dataclasses.replace(NEW, id=f"r-{number}", uuid=f"u{number}", **changes)
    return queries.create_run(connection, new, float(number))


def test_claimed_by_priority_then_age_each_once(connection):
    for number, priority in enumerate([0, -10, 10, 0, 10]):
        add(connection, number, priority=priority)
    add(connection, 9, priority=10, not_before=1000.0)
    assert [run.id for run in queue.queued(connection)] == ["r-2", "r-4", "r-9", "r-0", "r-3", "r-1"]
    claimed = []
    while (attempt := queue.claim_next(connection, HOST, 100.0)) is not None:
        claimed.append(attempt.run_id)
        assert attempt.number == 1
    assert claimed == ["r-2", "r-4", "r-0", "r-3", "r-1"]
    assert queue.claim_next(connection, HOST, 1000.0).run_id == "r-9"


def test_the_same_content_is_one_job_and_the_offer_is_noted(connection):
    key = queue.dedup_key("ab" * 32, "assistant")
    first, is_new = queue.enqueue(connection, dataclasses.replace(NEW, dedup_key=key), 1.0)
    assert is_new
    again = dataclasses.replace(NEW, id="file-0002", uuid="u2", dedup_key=key)
    assert queue.enqueue(connection, again, 2.0) == (first, False)
    events = queries.run_history(connection, first.id)
    assert (events[-1].kind, events[-1].data) == ("duplicate", {"offered_as": "file-0002"})
    other = dataclasses.replace(again, dedup_key=queue.dedup_key("ab" * 32, "another"))
    assert queue.enqueue(connection, other, 3.0)[1], "another lineage learns it for itself"


def test_priority_changes_only_while_it_waits(connection):
    for number in (1, 2):
        add(connection, number)
    assert queue.set_priority(connection, "r-2", 10, 5.0).priority == 10
    assert queue.claim_next(connection, HOST, 6.0).run_id == "r-2"
    with pytest.raises(WrongStateError, match="still waits"):
        queue.set_priority(connection, "r-2", 0, 7.0)


def test_what_is_tried_again_keeps_its_age(connection):
    add(connection, 1)
    token = queue.claim_next(connection, HOST, 2.0).number
    attempts.end_attempt(connection, "r-1", token, "failed", RunStatus.FAILED, 3.0, error="no")
    run = queue.requeue(connection, "r-1", 4.0, why="no", not_before=50.0, priority=-10, retries=1)
    assert (run.status, run.retries, run.priority, run.created, run.error) == ("queued", 1, -10, 1.0, "no")
    assert queue.next_queued(connection, 49.0) is None
    assert queue.claim_next(connection, HOST, 50.0).number == token + 1
    assert "requeued" in [event.kind for event in queries.run_history(connection, "r-1")]


def test_skip_and_clear_take_out_and_say_why(connection):
    for number in (1, 2, 3):
        add(connection, number)
    queue.claim_next(connection, HOST, 4.0)
    skipped = queue.skip(connection, "r-2", 5.0, "a mistake", "ann")
    assert (skipped.status, skipped.error) == ("skipped", "a mistake")
    assert [run.id for run in queue.clear(connection, 6.0, "enough")] == ["r-3"]
    assert queue.queued(connection) == ()
    assert queries.get_run(connection, "r-1").status == "initializing", "what is at work stays"
    data = queries.run_history(connection, "r-2")[-1].data
    assert data == {"by": "ann", "reason": "a mistake"}
    assert queue.requeue(connection, "r-2", 7.0, why="").status == "queued", "and may come back"


def test_recently_completed_for_some_days(connection):
    day = queue.DAY_SEC
    for number, end in ((1, 1 * day), (2, 6 * day), (3, 7 * day)):
        add(connection, number)
        token = queue.claim_next(connection, HOST, end).number
        queries.set_status(connection, f"r-{number}", RunStatus.RUNNING, end, token=token)
        attempts.end_attempt(connection, f"r-{number}", token, "completed", RunStatus.COMPLETED, end)
    recent = queue.recently(connection, RunStatus.COMPLETED, 9 * day, 7.0)
    assert [run.id for run in recent] == ["r-3", "r-2"]


def test_a_part_that_fails_inside_a_transaction_leaves_the_rest(connection):
    with transaction(connection):
        add(connection, 1)
        with pytest.raises(WrongStateError):
            add(connection, 1)
        add(connection, 2)
    assert [run.id for run in queue.queued(connection)] == ["r-1", "r-2"]


def test_postgresql_passes_over_a_row_that_another_connection_is_claiming(new_postgres_database):
    address = new_postgres_database()
    with Database.open(address) as database, database.session() as connection:
        for number in (1, 2):
            add(connection, number)
        engine = create_engine(make_url(address).set(drivername="postgresql+psycopg"))
        with engine.connect() as other, transaction(other):
            assert queue.next_queued(other, 5.0).id == "r-1"
            assert queue.claim_next(connection, HOST, 5.0).run_id == "r-2"
        engine.dispose()
        assert queue.claim_next(connection, HOST, 6.0).run_id == "r-1"
