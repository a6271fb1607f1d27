"""The run engine: phases, gates, breaker, checkpoints. Knows nothing about any recipe.

A run is an ordered list of phases. Between phases there may be a gate. A phase ends in an evaluation
and an atomic checkpoint, or it trips the breaker. `Engine.execute` is that sentence as code.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scaler_wizard.errors import BreakerTrippedError, ScalerError
from scaler_wizard.runs.context import InterruptedPhase, PhaseContext
from scaler_wizard.runs.link import HostLink
from scaler_wizard.runs.phase import GateRequest, Metrics, Phase, Recipe
from scaler_wizard.runs.step_checkpoints import StepCheckpoints
from scaler_wizard.runs.telemetry import Telemetry
from scaler_wizard.runs.unsaid import unsaid
from scaler_wizard.safety.breaker import Breaker
from scaler_wizard.safety.gates import Answer, Decision, Gate, decide
from scaler_wizard.safety.limits import MemoryLimit
from scaler_wizard.safety.sentence import fit, stop_sentence
from scaler_wizard.specs.cockpit import Action
from scaler_wizard.specs.events import GateClosed, GateOpened, Note, PhaseDone, RunEnded, RunStarted
from scaler_wizard.specs.sections import SafetySection
from scaler_wizard.store import flightlog
from scaler_wizard.store.checkpoint_files import Checkpoint, phase_of
from scaler_wizard.store.checkpoints import CheckpointStore, write_failed
from scaler_wizard.store.durable import is_disk_full
from scaler_wizard.store.rundir import Outcome as Status
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.snapshots import Snapshot, changelog, read_snapshots, write_snapshot
from scaler_wizard.store.workspace import Workspace
from scaler_wizard.training.out_of_memory import is_out_of_memory

POLL_SEC = 0.2
BREAKER_GATE = "breaker"
SNAPSHOT_METRICS = ("perplexity", "accuracy", "context_retention")


@dataclass(frozen=True)
class Outcome:
    """How a worker leaves. `rollback_to` names a phase the host is to roll back to."""

    status: Status
    reason: str = ""
    advice: str = ""
    rollback_to: str | None = None
    result: Metrics = field(default_factory=dict)


def ended_by(error: ScalerError) -> Outcome:
    """Failed; but a full disk only pauses a run: with space it goes on from its last checkpoint."""
    return Outcome("paused" if is_disk_full(error) else "failed", str(error), error.todo)


class Engine:
    """Executes one recipe in one run directory until it completes or somebody ends it."""

    def __init__(
        self, run: str, attempt: int, run_dir: RunDir, recipe: Recipe, link: HostLink, safety: SafetySection,
        telemetry: Telemetry, memory_limit: MemoryLimit, read_memory: Callable[[], int],
    ) -> None:  # fmt: skip
        self.run = run
        self.attempt = attempt
        self.run_dir = run_dir
        self.recipe = recipe
        self.link = link
        self.safety = safety
        self.telemetry = telemetry
        self.store = CheckpointStore(run_dir)
        self.step_checkpoints = StepCheckpoints(run_dir, attempt, safety.checkpoint_every_sec)
        self.breaker = Breaker(safety.circuit_breaker)
        self.memory_limit = memory_limit
        self.read_memory = read_memory

    def execute(self) -> Outcome:
        """Run to the end, and report how it ended (also as the last event)."""
        try:
            outcome = self._phases()
        except InterruptedPhase as request:
            outcome = self._interrupted(request)
        except BreakerTrippedError as error:
            outcome = self._tripped(error)
        except ScalerError as error:
            outcome = ended_by(error)
        except (MemoryError, RuntimeError, OSError) as error:
            # Steps and measurements make room for themselves; loading, folding and exporting cannot.
            if not is_out_of_memory(error):
                raise
            outcome = Outcome(
                "failed", f"memory ran out outside of training and measuring ({str(error)[:200]})",
                "close other programs or take a smaller model, then `scaler resume`",
            )  # fmt: skip
        finally:
            # Also of a worker that leaves by an error: the lock it passed on ends with the writer.
            self.step_checkpoints.close()
        self.telemetry.emit(
            RunEnded(
                status=outcome.status, reason=outcome.reason, advice=outcome.advice, result=outcome.result
            )
        )
        return outcome

    def _phases(self) -> Outcome:
        done, last = self._restore(), self.run_dir.until()
        for phase in self.recipe.phases():
            if phase.name in done:
                continue
            if last is not None and last in done:
                raise InterruptedPhase("pause", f"paused after {last}, as asked")
            context = self._context(phase.name)
            if phase.gate is not None:
                decision = self._ask(phase.name, phase.gate(context))
                if decision.action != "approve":
                    # Between phases "back" is the phase before the one that stands; inside one, that one.
                    target = decision.target_phase or self._last_phase(back=2)
                    raise InterruptedPhase(decision.action, decision.reason, target)
            done[phase.name] = self._run_phase(phase, context)
        self.link.request("activity", activity="save")
        result = self.recipe.finish(self._context(list(done)[-1]), done)
        result["seconds"] = round(time.time() - self.run_dir.created(), 1)
        self.run_dir.write_result(result)
        return Outcome("completed", result=result)

    def _restore(self) -> dict[str, Metrics]:
        """Stand where the newest verified checkpoint stands; say so when an older one had to serve."""
        recovery = self.store.newest_verified()
        chain = self.store.chain()
        done = {item.phase: dict(item.metrics) for item in chain}
        newest = recovery.checkpoint
        outline = [phase.name for phase in self.recipe.phases()]
        late = unsaid(self.run_dir.read_events(), chain)
        self.telemetry.emit(
            RunStarted(
                run=self.run, attempt=self.attempt, phases=outline, resumed_at=newest.name if newest else None
            )
        )
        for event, checkpoint in late:
            self._say_done(event, checkpoint)
        for item in recovery.quarantined:
            self.telemetry.emit(Note(text=f"checkpoint {item.name} was damaged and set aside: {item.reason}"))
        self.recipe.restore(newest, done)
        return done

    def _run_phase(self, phase: Phase, context: PhaseContext) -> Metrics:
        context.start(phase.title)
        self.link.request("phase_started", phase=phase.name)
        started = time.monotonic()
        metrics = phase.body(context)
        seconds = time.monotonic() - started
        context.settle()
        self.link.request("activity", activity="save")
        with self.store.stage(phase.name) as staging:
            try:
                self.recipe.save(staging.path)
            except OSError as error:
                raise write_failed(phase.name, error) from error
            checkpoint = staging.commit(step=int(metrics.get("steps", 0)), metrics=metrics)
        context.forget()
        self.store.prune()
        self._snapshot(context, phase.name, metrics)
        event = PhaseDone(
            phase=phase.name, checkpoint=checkpoint.name, seconds=seconds, metrics=metrics,
            generated=context.generated, scored=context.scored,
        )  # fmt: skip
        self._say_done(event, checkpoint)
        self.link.request("phase_done", phase=phase.name, checkpoint=checkpoint.name, metrics=metrics)
        return metrics

    def _say_done(self, event: PhaseDone, checkpoint: Checkpoint) -> None:
        """Tell of a committed phase in the events and in the flight log."""
        self.telemetry.emit(event)
        self.telemetry.state.audit["checkpoint"] = checkpoint.name
        self._log(
            "phase_done", {"phase": event.phase, "checkpoint": checkpoint.name, "digest": checkpoint.digest}
        )

    def _snapshot(self, context: PhaseContext, phase: str, metrics: Metrics) -> None:
        """Keep the phase's numbers and say what changed since the phase before."""
        numbers = {name: metrics[name] for name in SNAPSHOT_METRICS if metrics.get(name) is not None}
        if "context" in metrics:
            numbers["context_tokens"] = metrics["context"]
        snapshot = Snapshot(phase, time.time(), numbers)
        earlier = read_snapshots(self.run_dir)
        write_snapshot(self.run_dir, snapshot)
        before = [item for item in earlier if item.phase < phase]
        if before:
            context.note(f"since {before[-1].phase}: {changelog(before[-1], snapshot)}")

    def _context(self, phase: str) -> PhaseContext:
        return PhaseContext(
            phase, self.run_dir, self.store, self.telemetry, self.link, self.breaker, self.memory_limit,
            self.read_memory, self.step_checkpoints,
        )  # fmt: skip

    def _ask(self, phase: str, request: GateRequest) -> Decision:
        """Ask a person and wait; without an answer in the window the decision is to pause."""
        sentence = fit(request.sentence)
        gate = Gate(f"{phase}-{uuid.uuid4().hex[:8]}", time.time(), self.safety.gates.response_window_sec)
        question = {
            "gate": phase, "gate_id": gate.id, "sentence": sentence, "opened": gate.opened_at,
            "deadline": gate.deadline,
        }  # fmt: skip
        # The host first: whoever sees the event can answer at once.
        self.link.request("gate_opened", **question)
        self.telemetry.emit(
            GateOpened(gate=phase, sentence=sentence, deadline=gate.deadline, details=dict(request.details))
        )
        decision = self._wait(gate, phase, question)
        self.telemetry.emit(
            GateClosed(
                gate=phase, action=decision.action, by=decision.by, reason=decision.reason,
                target_phase=decision.target_phase,
            )
        )  # fmt: skip
        self.link.request(
            "gate_closed",
            gate=phase,
            gate_id=gate.id,
            action=decision.action,
            by=decision.by,
            reason=decision.reason,
        )
        self._log(
            "decision", {"gate": phase, "action": decision.action, "by": decision.by, "sentence": sentence}
        )
        return decision

    def _wait(self, gate: Gate, phase: str, question: dict[str, Any]) -> Decision:
        """Poll with the whole question: a host that came back after it was asked learns it from there."""
        if self.safety.gates.ask == "auto_approve":
            action: Action = "rollback" if phase == BREAKER_GATE else "approve"
            answer = Answer(uuid.uuid4().hex, gate.id, action, time.time(), "the run itself (auto_approve)")
            return decide(gate, time.time(), answer)
        while True:
            reply: dict[str, Any] = self.link.request("gate_poll", **question) or {}
            found = reply.get("answer")
            decision = decide(gate, time.time(), Answer(**found) if isinstance(found, dict) else None)
            if decision.action != "wait":
                return decision
            time.sleep(POLL_SEC)

    def _tripped(self, error: BreakerTrippedError) -> Outcome:
        """The breaker stopped a phase: the last checkpoint is untouched; a person chooses what is next."""
        back = self._last_phase()
        sentence = stop_sentence(error.step, error.reason, back or "the start")
        try:
            decision = self._ask(
                BREAKER_GATE, GateRequest(sentence, {"reason": error.reason, "step": error.step})
            )
        except InterruptedPhase as request:
            return self._interrupted(request)
        reason = str(error)
        if decision.action == "rollback":
            return Outcome("failed", reason, error.todo, rollback_to=decision.target_phase or back)
        if decision.action == "abort":
            return Outcome("stopped", reason, error.todo)
        return Outcome("paused", reason, error.todo)

    def _interrupted(self, request: InterruptedPhase) -> Outcome:
        if request.action == "abort":
            return Outcome("stopped", request.reason or "aborted by a person")
        if request.action == "rollback":
            return Outcome(
                "paused", request.reason or "rolled back by a person", "`scaler resume` goes on from there",
                rollback_to=request.target_phase or self._last_phase(),
            )  # fmt: skip
        return Outcome("paused", request.reason or "paused", "`scaler resume` goes on from here")

    def _log(self, kind: str, data: Metrics) -> None:
        """Enter something into the workspace's flight log; its hash goes into the cockpit payload."""
        path = Workspace(self.run_dir.path.parent.parent).flight_log
        self.telemetry.state.audit["flight_log"] = flightlog.append(path, kind, self.run, data)

    def _last_phase(self, back: int = 1) -> str | None:
        """The phase of the newest committed checkpoint, or of the one before it (2)."""
        chain = self.store.head().chain
        return phase_of(chain[-min(back, len(chain))]) if chain else None
