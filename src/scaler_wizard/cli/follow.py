"""Following a run's events on screen, with or without being able to answer its gates."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable

from rich.console import Console

from scaler_wizard.cli.ask import PROMPT, forget_typed, read_line, remaining, understand
from scaler_wizard.cli.options import user_name
from scaler_wizard.cli.screen import RunScreen
from scaler_wizard.errors import ScalerError, WrongStateError
from scaler_wizard.jobs.client import Client
from scaler_wizard.planning.plan import MEMORY_FRACTION, Plan
from scaler_wizard.report.cockpit import CockpitState
from scaler_wizard.specs.events import Event, GateOpened
from scaler_wizard.store.rundir import RunDir

POLL_SEC = 0.1


class Follower:
    """Shows one run until it ends. `client` answers gates where a person may."""

    def __init__(self, run_dir: RunDir, console: Console, client: Client | None = None) -> None:
        stored = run_dir.plan()
        if stored is None:
            raise WrongStateError(
                f"run {run_dir.id} was never planned: there is nothing to follow", "a run that has begun",
                f"`scaler runs show {run_dir.id}` says why",
            )  # fmt: skip
        plan = Plan.from_dict(stored)
        label = "RAM" if plan.device == "cpu" else "VRAM"
        self.run_dir = run_dir
        self.client = client
        self.console = console
        self.screen = RunScreen(
            console,
            CockpitState(run_dir.identity().uuid, total_memory=round(plan.memory_limit / MEMORY_FRACTION)),
            memory_label=label,
        )
        self.answers_itself = run_dir.job()["safety"]["gates"]["ask"] == "auto_approve"
        self.interactive = not self.answers_itself and client is not None and sys.stdin.isatty()
        self._gate: GateOpened | None = None

    def follow(self, stop: Callable[[], bool], from_seq: int = 0) -> Event | None:
        """Show events from `from_seq` until the run's end; returns the last event.

        `stop` is called between events: true ends the following when nothing more is written.
        """
        last: Event | None = None
        with self.screen:
            for event in self.run_dir.follow_events(lambda: self._tick(stop), POLL_SEC, from_seq):
                self.screen.apply(event)
                last = event
                if event.type == "gate_opened":
                    self._gate = event
                    self._announce(event)
                elif event.type == "gate_closed":
                    self._gate = None
                    self.screen.resume_live()
        return last

    def _announce(self, event: GateOpened) -> None:
        if self.client is None or self.answers_itself:
            return
        if not self.client.call("show", run=self.run_dir.id)["open_gates"]:
            return  # an earlier attempt's, replayed
        command = f"scaler approve|abort|pause|rollback {self.run_dir.id}"
        self.console.print(f"     from another terminal: {command}", highlight=False, soft_wrap=True)
        if self.interactive:
            self.screen.pause_live()
            forget_typed()  # an answer typed before the question was shown is no answer to it
            self.console.print(
                f"  {remaining(event.deadline)} left", PROMPT, end="", markup=False, highlight=False
            )

    def _tick(self, stop: Callable[[], bool]) -> bool:
        """Between events: take a typed answer, and say whether following should end."""
        if self.interactive and self._gate is not None:
            line = read_line(0)
            if line:
                self._answer(line)
        return stop()

    def _answer(self, line: str) -> None:
        typed = understand(line)
        assert self.client is not None
        if typed is None:
            self.console.print(PROMPT, end="", markup=False)
            return
        try:
            answer = self.client.call(
                "command", run=self.run_dir.id, action=typed.action, target_phase=typed.target_phase,
                by=user_name(), reason="answered in the terminal", decision_id=uuid.uuid4().hex,
            )  # fmt: skip
            self.console.print(f"  {answer['message']}", highlight=False)
        except ScalerError as error:
            self.console.print(f"  {error}", style="yellow", highlight=False)
            self.console.print(PROMPT, end="", markup=False)
