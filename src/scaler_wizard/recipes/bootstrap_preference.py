"""Training on pairs inside a stage: plain warm-up if asked for, the reference scored once, then the pairs.

Both parts train the same fresh adapter, so that nothing but the adapter and the optimiser is needed to go on
in the middle. The reference is the policy before the first step on pairs, scored with the model in memory and
kept in the run directory: one model is in memory all the time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from scaler_wizard.data.pair_batches import PairBatches, TokenPair
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.errors import CheckpointError
from scaler_wizard.models.tensor_files import Files, TensorFile, write_files
from scaler_wizard.planning.plan import PhasePlan
from scaler_wizard.recipes.bootstrap_lab import Lab
from scaler_wizard.recipes.session import Training
from scaler_wizard.recipes.within_memory import steps_within_memory
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.runs.phase import Metrics
from scaler_wizard.specs.constitution_section import PreferenceSection
from scaler_wizard.store.checkpoint_files import Checkpoint
from scaler_wizard.training.backoff import MicroBatchSizes, SizedBatches
from scaler_wizard.training.forward import Objective, make_objective
from scaler_wizard.training.loop import Guard, StepResult, TrainSettings, new_state
from scaler_wizard.training.memory import peak_memory_bytes
from scaler_wizard.training.preference import (
    PreferenceSettings,
    Reference,
    check_reference,
    check_start,
    preference_objective,
    score_reference,
)
from scaler_wizard.training.state import state_files

Part = Literal["warmup", "pairs"]
MARK_FILE = "preference.json"
SLOWER = 4
"""The pairs' learning rate is the other stages' divided by this: they move a model that is already right."""


@dataclass(frozen=True)
class PairTraining:
    """What one preference training works with."""

    lab: Lab
    context: PhaseContext
    phase: PhasePlan
    section: PreferenceSection
    pairs: Sequence[TokenPair]
    anchors: Sequence[TokenRow]
    directory: Path
    """Where the reference is kept."""

    def run(self) -> Metrics:
        """Train and merge; what the steps said, first loss and peak memory included.

        Raises:
            ReferenceMismatchError: the first loss is not ln 2. EmptyDataError: no pair.
            CheckpointError: the reference on the disk is another one's.
            BreakerTrippedError, LimitError, InterruptedPhase: see `PhaseContext.steps`.
        """
        lab, session = self.lab, self.lab.session
        interrupted, lab.partial = lab.partial, None
        part = _part_of(interrupted)
        if interrupted is not None:
            session.load(interrupted.path)
        session.trained_in, session.merged = self.context.phase, False
        if self.section.warmup_steps and part != "pairs":
            self._warm_up(interrupted if part == "warmup" else None)
        found = self._train_pairs(interrupted if part == "pairs" else None)
        session.merge()
        return found

    def _warm_up(self, interrupted: Checkpoint | None) -> None:
        rows = [pair.chosen for pair in self.pairs]
        share = self.section.anchors_per_pair / (1 + self.section.anchors_per_pair)
        training = self.lab.session.training(
            self.phase, rows, self.anchors, self.section.warmup_steps, min(share, 0.9)
        )
        self._steps("warmup", training, make_objective("sft"), interrupted)

    def _train_pairs(self, interrupted: Checkpoint | None) -> Metrics:
        session, settings = self.lab.session, preference_settings(self.section)
        training = self._training()
        reference, checked = None, None
        if settings.needs_reference:
            reference = self._reference(resumed=interrupted is not None)
            if interrupted is None:
                checked = check_start(
                    session.adapted, training.batches.step(0).micro_batches, reference,
                    beta=settings.beta, device=session.device,
                )  # fmt: skip
                self.context.note(f"the first DPO loss is {checked:.4f} (ln 2): the reference is the policy")
        # Training that was resumed in its middle has no first step of its own.
        first = self.context.once("first loss", lambda: checked)
        objective = preference_objective(settings, reference)
        last = self._steps("pairs", training, objective, interrupted)
        return {
            "method": settings.method, "steps": training.state.step, "first_loss": first,
            "pairs": len(self.pairs), "anchors": len(self.anchors),
            "learning_rate": training.settings.learning_rate,
            "last": {name: round(value, 6) for name, value in last.items()},
            "peak_memory_bytes": peak_memory_bytes(session.device),
        }  # fmt: skip

    def _training(self) -> Training:
        lab, phase, section = self.lab, self.phase, self.section
        job = lab.job.training
        sizes = MicroBatchSizes([(0, phase.micro_batch_tokens)])
        batches = PairBatches(
            self.pairs, self.anchors, pairs_per_step=section.pairs_per_step,
            anchors_per_pair=section.anchors_per_pair, micro_batch_tokens=phase.micro_batch_tokens,
            seed=job.seed,
        )  # fmt: skip
        settings = TrainSettings(
            total_steps=section.steps or job.max_steps,
            learning_rate=section.learning_rate or lab.plan.learning_rate / SLOWER,
            warmup_fraction=job.warmup_fraction, schedule=job.schedule, weight_decay=job.weight_decay,
            max_grad_norm=job.max_grad_norm, seed=job.seed,
            activation_checkpointing=phase.activation_checkpointing,
        )  # fmt: skip
        state = new_state(lab.session.adapted, settings)
        return Training(SizedBatches(batches, sizes), settings, state, sizes, phase)

    def _steps(
        self, part: Part, training: Training, objective: Objective, interrupted: Checkpoint | None
    ) -> dict[str, float]:
        """All steps of one part; the last one's metrics."""
        session, context = self.lab.session, self.context
        if interrupted is not None:
            session.continue_training(training, interrupted.path)
        # Losses of another objective say nothing about this one's.
        context.breaker.reset()
        # A training that was killed after its last step has no step left to say this.
        last: dict[str, float] = {} if interrupted is None else _mark_of(interrupted)["last"]

        def capture() -> Files:
            mark = json.dumps({"part": part, "last": last}).encode() + b"\n"
            return {**session.files(), **state_files(training.state), MARK_FILE: mark}

        def begin(guard: Guard) -> Iterator[StepResult]:
            nonlocal last
            for result in steps_within_memory(session, context, training, objective, guard, part):
                last = {"loss": result.loss, **result.metrics}
                yield result

        for _ in context.steps(begin, capture):
            pass
        return last

    def _reference(self, *, resumed: bool) -> Reference:
        """Scored now; after a resume in the middle of the training, what was scored then."""
        path = self.directory / f"reference-{self.context.phase}.safetensors"
        if resumed:
            return check_reference(read_reference(path), self.pairs)
        session = self.lab.session
        reference = score_reference(
            session.adapted, self.pairs, micro_batch_tokens=self.phase.micro_batch_tokens,
            device=session.device, on_progress=self.context.progress("scoring the reference"),
        )  # fmt: skip
        write_reference(reference, path)
        return reference


def anchors_needed(section: PreferenceSection, pairs: int, max_steps: int) -> int:
    """Anchors that a training on so many pairs takes in all its steps, see `PairBatches`."""
    each = round(min(section.pairs_per_step, pairs) * section.anchors_per_pair)
    return max(1, each) * (section.steps or max_steps) if section.anchors_per_pair else 0


def preference_settings(section: PreferenceSection) -> PreferenceSettings:
    """The objective that a job asks for."""
    return PreferenceSettings(
        section.method, section.beta, section.sft_weight, section.anchor_weight, section.label_smoothing
    )


def write_reference(reference: Reference, path: Path) -> None:
    """Whole or not at all; OSError when the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    tensors = TensorFile({"log_probs": reference.log_probs}, {"pairs_sha256": reference.digest})
    write_files({part.name: tensors}, path.parent)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def read_reference(path: Path) -> Reference:
    """What `write_reference` wrote.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = file.get_tensor("log_probs")
            digest = (file.metadata() or {})["pairs_sha256"]
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"no usable reference at {path} ({type(error).__name__})",
            "what this training scored before it began", "roll back to before this phase",
        ) from None  # fmt: skip
    if found.ndim != 2 or found.shape[1] != 2:
        raise CheckpointError(f"{path} holds {list(found.shape)} numbers", "two for each pair")
    return Reference(found.float(), digest)


def _part_of(checkpoint: Checkpoint | None) -> Part | None:
    """Which part a step checkpoint was taken in."""
    if checkpoint is None:
        return None
    return "pairs" if _mark_of(checkpoint)["part"] == "pairs" else "warmup"


def _mark_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a step checkpoint says of itself: its part, and what the last step of that part said."""
    found: dict[str, Any] = json.loads((checkpoint.path / MARK_FILE).read_text(encoding="utf-8"))
    return found
