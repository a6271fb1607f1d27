"""A recipe without a model: pure Python state, real run directory, checkpoints and telemetry."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scaler_wizard.models.tensor_files import Files, write_files
from scaler_wizard.report.cockpit import CockpitState
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.engine import Engine, Outcome
from scaler_wizard.runs.link import HostLink
from scaler_wizard.runs.phase import GateRequest, Metrics, Phase
from scaler_wizard.runs.telemetry import Telemetry
from scaler_wizard.safety.limits import MemoryLimit
from scaler_wizard.specs.sections import SafetySection
from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.store.workspace import Workspace
from scaler_wizard.training.loop import StepResult

SENTENCE = "Expand context? Perplexity +1.0%. Approve"


@dataclass
class CountingRecipe:
    """P0, P1 (trains), P2 and P3 behind gates. Its "weights" are the number of steps it was trained."""

    losses: list[float] = field(default_factory=lambda: [2.0, 1.9, 1.8, 1.7])
    ran: list[str] = field(default_factory=list)
    weight: int = 0
    step: int = 0
    candidates_made: int = 0
    pace: float = 0.0
    ballast: int = 0
    """Bytes that every checkpoint carries besides."""
    before_step: Callable[[int], None] = lambda step: None

    def restore(self, checkpoint: Checkpoint | None, done: dict[str, Metrics]) -> None:
        self.done = done
        if checkpoint is not None:
            stored = json.loads((checkpoint.path / "weights.json").read_text())
            self.weight = stored["weight"]
            self.step = stored["step"] if checkpoint.kind == "step" else 0

    def phases(self) -> Iterator[Phase]:
        yield Phase("P0", "measure", self.measure)
        yield Phase("P1", "train", self.train)
        yield Phase("P2", "expand", self.expand, self.ask)
        yield Phase("P3", "finish", self.measure, lambda context: GateRequest("Finish? Approve"))

    def save(self, directory: Path) -> None:
        write_files(self.files(), directory)

    def files(self) -> Files:
        state = json.dumps({"weight": self.weight, "step": self.step}).encode()
        return {"weights.json": state, "ballast": bytes(self.ballast)}

    def finish(self, context: PhaseContext, done: dict[str, Metrics]) -> Metrics:
        return {"weight": self.weight, "phases": list(done)}

    def measure(self, context: PhaseContext) -> Metrics:
        self.ran.append(context.phase)
        report = context.progress("measuring")
        for number in range(4):
            report(number + 1, 4)
        context.probe("loss", {"value": 2.0, "n": 4})
        return {"perplexity": 7.4, "accuracy": 0.5}

    def train(self, context: PhaseContext) -> Metrics:
        self.ran.append(context.phase)

        def begin(guard: Callable[[StepResult], bool]) -> Iterator[StepResult]:
            while self.step < len(self.losses):
                number = self.step + 1
                self.before_step(number)
                time.sleep(self.pace)
                result = StepResult(
                    step=number, total_steps=len(self.losses), loss=self.losses[self.step], grad_norm=1.0,
                    learning_rate=1e-3, tokens=100, label_tokens=50, metrics={}, seconds=0.1,
                    memory_bytes=1 << 20,
                )  # fmt: skip
                if not guard(result):
                    return
                self.step, self.weight = number, self.weight + 1
                yield result

        for _ in context.steps(begin, self.files):
            pass
        steps, self.step = self.step, 0
        return {"perplexity": 6.0, "accuracy": 0.6, "steps": steps, "context": 128}

    def ask(self, context: PhaseContext) -> GateRequest:
        context.once("candidates", self._candidates)
        return GateRequest(SENTENCE, {"n": 1})

    def expand(self, context: PhaseContext) -> Metrics:
        self.ran.append(context.phase)
        return {"perplexity": 6.1, "candidates": context.once("candidates", self._candidates), "passed": True}

    def _candidates(self) -> list[int]:
        self.candidates_made += 1
        return [1, 2]


@dataclass
class Bench:
    """A run directory in a workspace, and engines over it."""

    run_dir: RunDir
    memory: Callable[[], int] = lambda: 0
    ask: str = "auto_approve"
    breaker: dict[str, Any] = field(default_factory=dict)
    checkpoint_every_sec: float = 60.0

    def engine(self, recipe: CountingRecipe, link: HostLink | None = None, attempt: int = 1) -> Engine:
        safety = SafetySection.parse(
            {
                "gates": {"ask": self.ask, "response_window_sec": 30},
                "circuit_breaker": self.breaker,
                "checkpoint_every_sec": self.checkpoint_every_sec,
            }
        )
        state = CockpitState(
            self.run_dir.identity().uuid, total_memory=1000, response_window_sec=30, audit={"contract": "x"}
        )
        return Engine(
            self.run_dir.id, attempt, self.run_dir, recipe, link or HostLink(None, self.run_dir.id, attempt),
            safety, Telemetry(self.run_dir, state), MemoryLimit(1000), self.memory,
        )  # fmt: skip

    def execute(self, recipe: CountingRecipe, **fields: Any) -> Outcome:
        engine = self.engine(recipe, **fields)
        try:
            return engine.execute()
        finally:
            engine.telemetry.close()
            engine.link.close()

    def events(self, kind: str) -> list[Any]:
        return [event for event in self.run_dir.read_events() if event.type == kind]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Workspace.create(tmp_path / "space").new_run_dir("counting"))


@pytest.fixture
def counting() -> type[CountingRecipe]:
    return CountingRecipe
