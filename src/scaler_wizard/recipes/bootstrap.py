"""bootstrap: a base model teaches itself to follow instructions, in six stages, every gain proven.

P0 measures the base: is there a gap, may the scorer be trusted, is it a base at all? P1 to P5 each make data
with the model before them, filter it by the model's own agreement and confidence, train an adapter, measure
the fixed questions, decide, and merge. Where the gate is not met the stage is tried again from the model
before it (P2.2: more data where it is weak, P2.3: more replay), and if that does not help either, the run
ends with the last stage that passed. P6 teaches a constitution. P7 exports. Each phase's checkpoint is a
whole model of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scaler_wizard.data.worlds import open_world
from scaler_wizard.models.hashing import weights_sha256
from scaler_wizard.planning.plan import Plan
from scaler_wizard.recipes.bootstrap_assess import assess
from scaler_wizard.recipes.bootstrap_constitution import NUMBER as CONSTITUTION
from scaler_wizard.recipes.bootstrap_constitution import ConstitutionStage, constitution_of
from scaler_wizard.recipes.bootstrap_lab import Lab
from scaler_wizard.recipes.bootstrap_prompts import check_prompts
from scaler_wizard.recipes.bootstrap_result import bootstrap_result, export_last, gate_request
from scaler_wizard.recipes.bootstrap_session import MODEL_DIR, StageSession
from scaler_wizard.recipes.bootstrap_stage import MOST_ATTEMPTS, Effort, Stage, phase_name
from scaler_wizard.recipes.bootstrap_teach import STAGES
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import GateRequest, Metrics, Phase
from scaler_wizard.specs.bootstrap import BootstrapJob
from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.store.checkpoints import CheckpointStore
from scaler_wizard.store.rundir import RunDir
from scaler_wizard.training.memory import peak_memory_bytes

LAST = "P7"


class BootstrapRecipe:
    """The phases of one `bootstrap` job."""

    def __init__(self, job: BootstrapJob, plan: Plan, run_dir: RunDir) -> None:
        self.job = job
        self.plan = plan
        self.run_dir = run_dir
        self.lab = Lab(job, plan, run_dir, open_world(job))
        self.stages: tuple[Stage, ...] = (*STAGES, ConstitutionStage())[: job.stages.last]
        self.partial: Checkpoint | None = None

    def phases(self) -> Iterator[Phase]:
        """P0, each stage as often as its gate asks for, P7."""
        yield Phase("P0", "measure the base", self.measure_base)
        if not self.lab.done.get("P0", {}).get("train", True):
            yield Phase(LAST, "nothing to train", self.finish_up)
            return
        for stage in self.stages:
            for attempt in range(1, MOST_ATTEMPTS + 1):
                name = phase_name(stage.number, attempt)
                title = f"stage {stage.number}: {stage.title}" + (
                    f", attempt {attempt}" if attempt > 1 else ""
                )
                yield Phase(
                    name, title, partial(self.run_stage, stage, attempt), partial(self.ask, stage, attempt)
                )
                # Before it ran nothing is known: the outline shows one attempt of every stage.
                if self.lab.done.get(name, {"next": "advance"})["next"] in ("advance", "stop"):
                    break
            if self.lab.done.get(name, {"passed": True})["passed"] is False:
                break
        yield Phase(LAST, "export", self.finish_up)

    def restore(self, checkpoint: Checkpoint | None, done: dict[str, Metrics]) -> None:
        """Load the model that the next phase starts from: the last one that passed."""
        self.lab.done = done
        self.partial = checkpoint if checkpoint is not None and checkpoint.kind == "step" else None
        self._load_last_passed()

    def save(self, directory: Path) -> None:
        """The whole model; nothing but a word before anything was trained."""
        session = self.lab.session
        if session.trained_in or session.path.name == MODEL_DIR:
            session.save_whole(directory)
        else:
            (directory / "untrained.txt").write_text(f"{self.plan.model}\n", encoding="utf-8")

    def measure_base(self, context: PhaseContext) -> Metrics:
        """Stage 0.

        Raises:
            IncompatibleModelError: the constitution's prompts do not fit the context.
        """
        if any(stage.number == CONSTITUTION for stage in self.stages):
            check_prompts(self.lab, constitution_of(self.lab))
        digest = weights_sha256(self.lab.session.path)
        context.note(f"base weights sha256 {digest[:16]}...")
        return {**assess(self.lab, context), "weights_sha256": digest}

    def ask(self, stage: Stage, attempt: int, context: PhaseContext) -> GateRequest:
        """A person's word before each attempt, with what the gate before it said and what it has cost."""
        return gate_request(self.lab, stage.number, stage.title, attempt)

    def run_stage(self, stage: Stage, attempt: int, context: PhaseContext) -> Metrics:
        """One attempt, from the last model that passed."""
        if self.lab.session.trained_in:
            self._load_last_passed()
        self.lab.begin(self.partial)
        self.partial = None
        return stage.run(self.lab, context, self._effort(stage, attempt))

    def _effort(self, stage: Stage, attempt: int) -> Effort:
        earlier = [self.lab.done[phase_name(stage.number, number)] for number in range(1, attempt)]
        section = (
            getattr(self.job.stages, STAGES[stage.number - 1].skill) if stage.number <= len(STAGES) else None
        )
        replay = section.replay if section is not None else 0.0
        if any(found["next"] == "more_replay" for found in earlier):
            replay = max(replay, self.job.stages.more_replay)
        weak = tuple(dict.fromkeys(kind for found in earlier for kind in found["weak"]))
        return Effort(attempt, weak, replay)

    def _load_last_passed(self) -> None:
        """The model of the newest attempt that passed, or the base; a failed attempt is undone by this."""
        passed = [name for name, found in self.lab.done.items() if found["passed"] and found["steps"]]
        stage = CheckpointStore(self.run_dir).checkpoint(passed[-1]) if passed else None
        self.lab.session = StageSession(self.job, self.plan, stage)

    def finish_up(self, context: PhaseContext) -> Metrics:
        """Export the last model that passed."""
        self._load_last_passed()
        return {"passed": True, "steps": 0, "export": export_last(self.lab, context)}

    def finish(self, context: PhaseContext, done: dict[str, Metrics]) -> Metrics:
        """The run's result."""
        return bootstrap_result(self.lab, done, peak_memory_bytes(self.lab.session.device))
