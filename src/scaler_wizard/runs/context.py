"""What a phase body may do besides its own work: report, remember, and be interrupted.

Everything a body says goes into the event stream; the cockpit payload follows from it. A body is
interrupted only inside `steps` and at `progress` calls, so between two of them it may assume
that nothing changes under it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.errors import BreakerTrippedError, CheckpointError, LimitError
from scaler_wizard.models.tensor_files import Files
from scaler_wizard.runs.eta import StepClock
from scaler_wizard.runs.link import HostLink
from scaler_wizard.runs.step_checkpoints import StepCheckpoint, StepCheckpoints
from scaler_wizard.runs.telemetry import Telemetry
from scaler_wizard.safety.breaker import Breaker, Verdict
from scaler_wizard.safety.limits import MemoryLimit, check_memory
from scaler_wizard.specs.events import Note, PhaseStarted, ProbeDone, Progress, StepDone, StepSaved
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.durable import write_atomic
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.training.loop import Guard, StepResult

BEAT_SEC = 0.2

CaptureStep = Callable[[], Files]
"""All that is needed to continue after the latest step, as live tensors."""


class InterruptedPhase(Exception):  # noqa: N818 (a request, not an error)
    """A person asked for something that ends this worker: pause, abort or rollback."""

    def __init__(self, action: str, reason: str = "", target_phase: str | None = None) -> None:
        super().__init__(action)
        self.action = action
        self.reason = reason
        self.target_phase = target_phase


@dataclass
class PhaseContext:
    """The engine's side of one phase, handed to its body."""

    phase: str
    run_dir: RunDir
    store: CheckpointStore
    telemetry: Telemetry
    link: HostLink
    breaker: Breaker
    memory_limit: MemoryLimit
    read_memory: Callable[[], int]
    step_checkpoints: StepCheckpoints
    later_sec: float = 0.0
    """Seconds needed after the steps of this phase, as far as the recipe knows: part of the ETA."""
    generated: int = 0
    """Tokens that this attempt has generated in this phase; whoever generates adds to it."""
    scored: int = 0
    """Tokens that this attempt has read in this phase to score answers."""
    _verdict: Verdict | None = None
    _stopped_at: int | None = None
    _resume_point: tuple[int, CaptureStep] | None = None
    """The latest step of a training of this phase, and what it takes to go on from it."""
    _last_beat: float = 0.0

    def start(self, title: str) -> None:
        """Announce the phase and start its clocks."""
        self.step_checkpoints.restart_clock()
        self.breaker.reset()
        self.telemetry.emit(PhaseStarted(phase=self.phase, title=title))

    def note(self, text: str) -> None:
        """Say one sentence to the person."""
        self.telemetry.emit(Note(phase=self.phase, text=text))

    def probe(self, probe: str, result: dict[str, Any]) -> dict[str, Any]:
        """Record one measurement and hand it back."""
        self.telemetry.emit(ProbeDone(phase=self.phase, probe=probe, result=result))
        return result

    def progress(self, activity: str) -> Callable[[int, int], None]:
        """A callback (done, total) for one activity: shows a bar with ETA and lets a person interrupt."""
        started = time.monotonic()

        def report(done: int, total: int) -> None:
            elapsed = time.monotonic() - started
            eta = elapsed / done * (total - done) if done else None
            memory = self._check_memory()
            self.telemetry.emit_progress(
                Progress(
                    phase=self.phase, activity=activity, done=done, total=total, eta_sec=eta,
                    memory_bytes=memory, generated=self.generated, scored=self.scored,
                )
            )  # fmt: skip
            self._beat()

        return report

    def steps(
        self, begin: Callable[[Guard], Iterator[StepResult]], capture: CaptureStep
    ) -> Iterator[StepResult]:
        """Go through a training's steps: breaker before each is applied, telemetry and a person's word after.

        Args:
            begin: starts the training with the guard it is to ask before every optimiser step.
            capture: all that is needed to continue after the latest step; its tensors are copied at once.

        Raises:
            BreakerTrippedError: the breaker said stop; that step was not applied.
            CheckpointError: the disk refused a step checkpoint.
            LimitError: memory above the contract's 90%.
            InterruptedPhase: pause, abort or rollback asked for by a person.
        """
        clock = StepClock()
        for result in begin(self._guard):
            self._report(result, clock.eta(result.total_steps - result.step) + self.later_sec)
            self._check_memory()
            self._resume_point = (result.step, capture)
            self._report_saved(self.step_checkpoints.poll())
            if self.step_checkpoints.due():
                self._snapshot(result.step, capture)
            self._beat()
            yield result
        if self._stopped_at is not None:
            todo = "roll back, then lower the learning rate or look at the data"
            raise BreakerTrippedError(self.breaker.tripped, self._stopped_at, todo)

    def _guard(self, result: StepResult) -> bool:
        verdict = self.breaker.register(
            result.step, perplexity(result.loss), loss=result.loss, grad_norm=result.grad_norm
        )
        self._verdict = verdict
        telegram = verdict.telegram(self.phase)
        if telegram is not None:
            self.telemetry.emit(telegram)
        if verdict.action == "stop":
            self._stopped_at = result.step
            return False
        return True

    def _report(self, result: StepResult, eta: float) -> None:
        slope = self._verdict.slope if self._verdict else None
        self.telemetry.emit(
            StepDone(
                phase=self.phase, step=result.step, total_steps=result.total_steps, loss=result.loss,
                grad_norm=result.grad_norm, learning_rate=result.learning_rate, tokens=result.tokens,
                seconds=result.seconds, memory_bytes=result.memory_bytes, eta_sec=eta,
                perplexity_slope=slope if slope is not None and math.isfinite(slope) else None,
            )
        )  # fmt: skip

    def settle(self) -> None:
        """Wait for the step checkpoint under way: whoever stages a checkpoint must be the only one."""
        self._report_saved(self.step_checkpoints.wait())

    def _snapshot(self, step: int, capture: CaptureStep) -> None:
        """Begin a step checkpoint; where there is no memory for the copy, the training goes on without it."""
        try:
            self.step_checkpoints.begin(self.phase, step, capture)
        except CheckpointError as error:
            self.step_checkpoints.restart_clock()
            self.note(f"no checkpoint at step {step}: {error.found}; earlier checkpoints are intact")

    def _save_step(self) -> None:
        """Commit a step checkpoint of the training under way and wait for it; nothing where there is none."""
        self.settle()
        if self._resume_point is None:
            return
        self.link.request("activity", activity="save")
        step, capture = self._resume_point
        self.step_checkpoints.begin(self.phase, step, capture)
        self.settle()

    def _report_saved(self, saved: StepCheckpoint | None) -> None:
        if saved is None:
            return
        if not saved.checkpoint:
            self.note(
                f"the checkpoint of step {saved.step} was not written: its writer was killed. The next one "
                "gets a new writer; earlier checkpoints are intact"
            )
            return
        self.telemetry.emit(
            StepSaved(
                phase=saved.phase, step=saved.step, checkpoint=saved.checkpoint, bytes=saved.bytes,
                snapshot_seconds=saved.snapshot_seconds, write_seconds=saved.write_seconds,
            )
        )  # fmt: skip

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """`make()`'s JSON-ready value, computed at most once per phase, also over a kill and a resume."""
        path = self.run_dir.path / "phase_memo.json"
        memo = self._memo(path)
        if key not in memo:
            # Through JSON at once, so that the first time and the time after a resume see the same value.
            memo[key] = json.loads(json.dumps(make()))
            write_atomic(path, json.dumps({"phase": self.phase, "memo": memo}))
        return memo[key]

    def _memo(self, path: Path) -> dict[str, Any]:
        """What this phase remembered; nothing where the file is another phase's or damaged."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            memo = stored["memo"] if stored["phase"] == self.phase else {}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {}
        return memo if isinstance(memo, dict) else {}

    def forget(self) -> None:
        """Drop what `once` remembered: the phase is committed, or starts from its beginning."""
        (self.run_dir.path / "phase_memo.json").unlink(missing_ok=True)

    def _beat(self) -> None:
        """Tell the host that there is progress, and obey what a person asked for."""
        now = time.monotonic()
        if now - self._last_beat < BEAT_SEC:
            return
        self._last_beat = now
        answer = self.link.request("beat", phase=self.phase) or {}
        command = answer.get("command")
        if not isinstance(command, dict):
            return
        if command["action"] == "pause":
            self._save_step()
        raise InterruptedPhase(command["action"], command.get("reason") or "", command.get("target_phase"))

    def _check_memory(self) -> int:
        """Bytes in use, within the contract's limit."""
        used, limit = self.read_memory(), self.memory_limit
        if check_memory(used, limit) == "over":
            raise LimitError(
                f"memory in use {used / 2**30:.2f} GiB of {limit.total_bytes / 2**30:.2f} GiB",
                f"at most {limit.fraction:.0%}, as the contract guarantees",
                "set training.micro_batch_tokens lower or free memory, then `scaler resume`",
            )
        return used


def perplexity(nats: float) -> float:
    """exp of a mean cross-entropy, infinite where it overflows."""
    return math.exp(nats) if nats < 700 else math.inf if nats >= 700 else math.nan
