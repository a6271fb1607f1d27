"""Being the host of one run in the foreground: `scaler run`, `scaler resume` and the demo."""

from __future__ import annotations

import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console

from scaler_wizard.cli.follow import Follower
from scaler_wizard.cli.options import print_json, user_name
from scaler_wizard.errors import ScalerError
from scaler_wizard.jobs.client import Client
from scaler_wizard.jobs.host import hosting
from scaler_wizard.planning.plan import Plan
from scaler_wizard.report.page import write_report
from scaler_wizard.report.table import format_table
from scaler_wizard.specs.job import FileJob
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.states import FINISHED, RunStatus
from scaler_wizard.store.workspace import Workspace

EXIT_CODES = {"completed": 0, "paused": 20, "stopped": 21, "skipped": 21}
RESTING = {*FINISHED, RunStatus.PAUSED}
ASK_SEC = 0.5


def host_run(
    workspace: Workspace, console: Console, *, job: FileJob | None = None, plan: Plan | None = None,
    run: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Create (from job and plan) or take up (by id) a run, show it until its worker ends; its final row.

    The first Ctrl-C asks the run to pause after its step; a second one leaves, and the worker goes on alone
    until its next gate.
    """
    with hosting(workspace) as host:
        if run is None:
            assert job is not None
            assert plan is not None
            created = host.call("create", job=job.model_dump(mode="json", by_alias=True), plan=plan.as_dict())
            run = str(created["run"])
        run_dir = workspace.run_dir(run)
        console.print(f"run {run_dir.id} in {run_dir.path}", highlight=False, soft_wrap=True)
        from_seq = next_seq(run_dir)
        started = host.call("start", run=run_dir.id)
        if started["adopted"]:
            console.print("its worker is still alive: taken over", highlight=False)
        with Client(workspace) as client, _pause_on_interrupt(client, run_dir.id, console):
            Follower(run_dir, console, client).follow(
                lambda: not host.call("alive", run=run_dir.id)["alive"], from_seq
            )
            while host.call("alive", run=run_dir.id)["alive"]:
                time.sleep(0.05)
        return host.call("show", run=run_dir.id)


def follow_filed(workspace: Workspace, console: Console, run: str, from_seq: int = 0) -> dict[str, Any]:
    """Show a run that the workspace's daemon has in its queue until it ends or pauses; its row then.

    Ctrl-C stops watching only.
    """
    run_dir = workspace.run_dir(run)
    console.print(
        f"run {run_dir.id} is in the daemon's queue; Ctrl-C stops watching, the run goes on", highlight=False
    )
    with Client(workspace) as client:
        resting = _Resting(client, run_dir.id)
        try:
            Follower(run_dir, console, client).follow(resting, from_seq)
        except KeyboardInterrupt:
            console.print(f"\nstopped watching; `scaler watch {run_dir.id}` shows it again", highlight=False)
            sys.exit(0)
        return client.call("show", run=run_dir.id)


class _Resting:
    """Whether a run of the daemon's has ended or paused; asks twice a second, however often it is asked."""

    def __init__(self, client: Client, run: str) -> None:
        self.client = client
        self.run = run
        self._asked = float("-inf")
        self._answer = False

    def __call__(self) -> bool:
        if time.monotonic() - self._asked > ASK_SEC:
            self._answer = self.client.call("show", run=self.run)["status"] in RESTING
            self._asked = time.monotonic()
        return self._answer


def next_seq(run_dir: RunDir) -> int:
    """Events from here on belong to the attempt that is about to start."""
    last = -1
    for event in run_dir.read_events():
        last = event.seq
    return last + 1


@contextmanager
def _pause_on_interrupt(client: Client, run: str, console: Console) -> Iterator[None]:
    """Ctrl-C means pause, once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        console.print("\npausing after this step (Ctrl-C again to leave)...", highlight=False)
        try:
            with Client(client.workspace) as another:
                another.call("command", run=run, action="pause", by=user_name(), decision_id=uuid.uuid4().hex)
        except ScalerError as error:
            console.print(str(error), highlight=False)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def finish(workspace: Workspace, console: Console, row: dict[str, Any], *, json: bool) -> None:
    """Say how the run ended: table and report, or what to do next. Leaves with the matching exit code."""
    run_dir = workspace.run_dir(str(row["run"]))
    result = run_dir.result()
    report = write_report(run_dir.path)
    if row["status"] == "completed" and result is not None:
        console.print()
        console.print(format_table(result), highlight=False, markup=False, soft_wrap=True)
        export = result.get("export") or {}
        for kind in ("merged", "adapter"):
            if export.get(kind):
                console.print(f"{kind} model: {export[kind]}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"way back: scaler rollback {run_dir.id} --to-phase 1", highlight=False, markup=False)
    else:
        console.print(
            f"{run_dir.id} is {row['status']}: {row.get('error') or ''}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        if row.get("advice"):
            console.print(f"what to do: {row['advice']}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"continue with: scaler resume {run_dir.id}", highlight=False, markup=False)
    console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)
    if json:
        print_json(
            {
                **(result or {}),
                "run": run_dir.id,
                "status": row["status"],
                "report": str(report),
                "error": row.get("error"),
            }
        )
    code = EXIT_CODES.get(str(row["status"]), 1)
    if code:
        sys.exit(code)
