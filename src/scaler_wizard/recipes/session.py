"""A model with its adapters and optimiser, as a recipe works on it inside a worker.

What recipes share: loading by plan, one training call that reports every step and can be continued
mid-phase, saving and restoring. Knows no phases, no gates and no data set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file

from scaler_wizard.data.activation import chat_invocation
from scaler_wizard.data.batches import Batches, Collate
from scaler_wizard.data.batches import collate as collate_text
from scaler_wizard.data.chat import prepare_chat_template
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.inference.backoff import InferenceRoom
from scaler_wizard.models.adapter_io import adapter_files, read_adapter_tensors
from scaler_wizard.models.adapters import (
    adapters_off,
    attach,
    folded,
    load_adapter,
    load_adapter_state,
    trainable_parameters,
)
from scaler_wizard.models.load import load_model
from scaler_wizard.models.rope import RopeSetting, applied_rope, apply_rope, remove_rope
from scaler_wizard.models.tensor_files import Files, TensorFile, write_files
from scaler_wizard.models.vocabulary import grow_vocabulary, missing_tokens
from scaler_wizard.planning.plan import PhasePlan, Plan
from scaler_wizard.recipes.within_memory import steps_within_memory
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.specs.job import Job
from scaler_wizard.specs.sections import Strategy
from scaler_wizard.training.backoff import MicroBatchSizes, SizedBatches
from scaler_wizard.training.fast_path import plan_fast_path
from scaler_wizard.training.forward import check_head, make_objective
from scaler_wizard.training.loop import Guard, StepResult, TrainSettings, new_state
from scaler_wizard.training.state import TrainState, load_state, state_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STATE_FILE = "session.json"
VERY_LONG = 1 << 40
FULL_WEIGHTS = "trained.safetensors"


@dataclass
class Training:
    """One training of a phase, continued over rounds and over a resume."""

    batches: SizedBatches
    settings: TrainSettings
    state: TrainState
    sizes: MicroBatchSizes
    phase: PhasePlan


class ModelSession:
    """The model of a run. `adapted` is the model to train and measure (a PEFT wrapper where there is one).

    Args:
        base: the model to start from where it is not the job's own: a later version of it.
        adapter: directory of an adapter to go on with; a fresh one by the plan when None.
        activated: the fresh adapter acts from the opening of the assistant's turn on (an activated LoRA).
    """

    def __init__(
        self, job: Job, plan: Plan, *, base: Path | None = None, adapter: Path | None = None,
        activated: bool = False,
    ) -> None:  # fmt: skip
        self.plan = plan
        section = job.model
        loaded = load_model(
            base or section.base_model,
            tokenizer=section.tokenizer if base is None else None,
            dtype=DTYPES[plan.precision],
            device=plan.device,
            trust_remote_code=section.trust_remote_code,
            quantize_4bit=plan.strategy == "qlora",
            revision=section.revision if base is None else None,
        )
        self.path = loaded.path
        self.device = loaded.device
        self.tokenizer = loaded.tokenizer
        # Texts are tokenised whole and cut by us; the tokenizer's own limit would only warn.
        self.tokenizer.model_max_length = VERY_LONG
        self.base_context = loaded.base_context
        self.room = InferenceRoom()
        self._training = job.training
        self.remote_code = section.trust_remote_code
        self.vocabulary = None
        new = job.scaling.vocabulary.add_tokens
        if base is not None:  # a whole model that was saved later has its tokens; an adapter's base has not
            new = missing_tokens(self.tokenizer, new)
        if new:
            self.vocabulary = grow_vocabulary(loaded.model, self.tokenizer, new)
        check_head(loaded.model)
        self.invocation: tuple[int, ...] | None = None
        if activated:
            prepare_chat_template(self.tokenizer)
            self.invocation = chat_invocation(self.tokenizer)
        self.adapted: Any = (
            load_adapter(loaded.model, adapter) if adapter is not None else self._attach(loaded.model)
        )
        self.adapted.eval()

    def _attach(self, model: Any) -> Any:
        plan = self.plan
        return attach(
            model, cast(Strategy, plan.strategy), rank=plan.lora.rank, alpha=plan.lora.alpha,
            dropout=plan.lora.dropout, target_modules=plan.lora.target_modules,
            use_rslora=plan.lora.use_rslora, seed=self._training.seed,
            alora_invocation_tokens=self.invocation,
        )  # fmt: skip

    @property
    def micro_batch_is_fixed(self) -> bool:
        """Whether the job names the size of a forward pass."""
        return self._training.micro_batch_tokens is not None

    @property
    def is_prefix(self) -> bool:
        """Whether a prefix is trained: rows are then not packed and positions not stretched."""
        return self.plan.strategy == "prefix_tuning"

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Adapters folded into the weights while probes run: evaluation costs what the base costs."""
        with folded(self.adapted):
            yield

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """The base alone. A LoRA adapter starts as no change; a prefix does not and is left out."""
        with adapters_off(self.adapted):
            yield

    def set_rope(self, setting: RopeSetting | None) -> None:
        """Stretch positions, or restore the base's."""
        if setting is None:
            remove_rope(self.adapted)
        else:
            apply_rope(self.adapted, setting)

    @property
    def rope(self) -> RopeSetting | None:
        """How positions are stretched now; None where they are not, also after a length was undone."""
        setting = applied_rope(self.adapted)
        if setting is not None and setting.target_context == setting.original_context:
            return None
        return setting

    def training(
        self,
        phase: PhasePlan,
        rows: Sequence[TokenRow],
        replay: Sequence[TokenRow],
        steps: int,
        replay_fraction: float,
        collate: Collate = collate_text,
    ) -> Training:
        """Batches, optimiser settings and a fresh optimiser for one phase.

        Args:
            steps: most optimiser steps; fewer where the job's passes over `rows` need fewer.
            replay_fraction: share of a step's tokens that is taken from `replay`, where there is any.
            collate: makes a forward pass of rows; a `PictureCollate` where rows have pictures.
        """
        section = self._training
        batches = Batches(
            rows, context=phase.context, batch_tokens=phase.batch_tokens,
            micro_batch_tokens=phase.micro_batch_tokens, seed=section.seed, text_rows=replay,
            replay_fraction=replay_fraction, packed=not self.is_prefix, collate=collate,
        )  # fmt: skip
        if section.epochs is not None:
            steps = min(steps, batches.steps_for(section.epochs))
        settings = TrainSettings(
            total_steps=steps, learning_rate=self.plan.learning_rate, warmup_fraction=section.warmup_fraction,
            schedule=section.schedule, weight_decay=section.weight_decay, max_grad_norm=section.max_grad_norm,
            seed=section.seed, activation_checkpointing=phase.activation_checkpointing,
        )  # fmt: skip
        sizes = MicroBatchSizes([(0, phase.micro_batch_tokens)])
        sized = SizedBatches(batches, sizes)
        return Training(sized, settings, new_state(self.adapted, settings), sizes, phase)

    def run(
        self,
        context: PhaseContext,
        training: Training,
        until: int | None = None,
        after_step: Callable[[StepResult], None] = lambda result: None,
    ) -> int:
        """Train until step `until` (all when None); returns the steps done. Every step is reported.

        Args:
            after_step: may evaluate; it finds the model in evaluation mode.

        Raises:
            BreakerTrippedError, LimitError, InterruptedPhase: see `PhaseContext.steps`.
        """
        objective = make_objective("sft")
        if not training.state.step:
            context.note(f"training layers {plan_fast_path(self.adapted).sentence()}")

        def capture() -> Files:
            return {**self.files(), **state_files(training.state)}

        def begin(guard: Guard) -> Iterator[StepResult]:
            return steps_within_memory(self, context, training, objective, guard)

        for result in context.steps(begin, capture):
            after_step(result)
            if until is not None and training.state.step >= until:
                break
        return training.state.step

    def continue_training(self, training: Training, directory: Path) -> None:
        """Take up a training in the middle of its phase from a step checkpoint."""
        load_state(training.state, directory)

    def save(self, directory: Path) -> None:
        """Write trained weights and the rotary setting; OSError when the disk refuses."""
        write_files(self.files(), directory)

    def files(self) -> Files:
        """What `save` writes, the tensors still the model's own."""
        rope = self.rope.as_dict() if self.rope else None
        state = json.dumps({"rope": rope}, indent=1).encode() + b"\n"
        if self.plan.strategy == "full":
            return {FULL_WEIGHTS: TensorFile(trainable_parameters(self.adapted)), STATE_FILE: state}
        adapter = {f"adapter/{name}": content for name, content in adapter_files(self.adapted).items()}
        return {**adapter, STATE_FILE: state}

    def load(self, directory: Path) -> None:
        """Become what `save` wrote (the checkpoint's hashes are verified by the caller)."""
        if self.plan.strategy == "full":
            tensors = load_file(directory / FULL_WEIGHTS, device=str(self.device))
            with torch.no_grad():
                for name, value in self.adapted.named_parameters():
                    if name in tensors:
                        value.copy_(tensors[name])
        else:
            load_adapter_state(self.adapted, read_adapter_tensors(directory / "adapter"))
        stored = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))["rope"]
        self.set_rope(RopeSetting.from_dict(stored) if stored else None)
