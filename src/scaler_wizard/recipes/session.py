"""A model with its data, adapters and optimiser, as a recipe works on it inside a worker.

What recipes share: loading by plan, token rows at a context length, one training call that reports every
step and can be continued mid-phase, saving and restoring. Knows no phases and no gates.
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

from scaler_wizard.data.batches import Batches
from scaler_wizard.data.dataset import Dataset, load_dataset
from scaler_wizard.data.join import join_rows
from scaler_wizard.data.rows import Row
from scaler_wizard.data.token_rows import TokenRow
from scaler_wizard.data.tokens import TokenizedData, TokenReport, tokenize_rows
from scaler_wizard.evals.documents import MIN_DOCUMENTS
from scaler_wizard.evals.suite import Suite
from scaler_wizard.evals.tasks import TaskRow, row_from_conversation, row_from_example
from scaler_wizard.inference.backoff import InferenceRoom
from scaler_wizard.models.adapter_io import adapter_files, read_adapter_tensors
from scaler_wizard.models.adapters import (
    adapters_off,
    attach,
    folded,
    load_adapter_state,
    trainable_parameters,
)
from scaler_wizard.models.load import load_model
from scaler_wizard.models.rope import RopeSetting, applied_rope, apply_rope, remove_rope
from scaler_wizard.models.tensor_files import Files, TensorFile, write_files
from scaler_wizard.models.vocabulary import grow_vocabulary
from scaler_wizard.planning.plan import PhasePlan, Plan
from scaler_wizard.recipes.within_memory import steps_within_memory
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.specs.grow import GrowJob, Strategy
from scaler_wizard.training.backoff import MicroBatchSizes, SizedBatches
from scaler_wizard.training.fast_path import plan_fast_path
from scaler_wizard.training.forward import check_head, make_objective
from scaler_wizard.training.loop import TrainSettings, new_state
from scaler_wizard.training.state import TrainState, load_state, state_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STATE_FILE = "session.json"
VERY_LONG = 1 << 40
SHORTEST_WINDOW = 64
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
    """The model of a run. `adapted` is the model to train and measure (a PEFT wrapper where there is one)."""

    def __init__(self, job: GrowJob, plan: Plan, target_context: int) -> None:
        self.job = job
        self.plan = plan
        section = job.model
        loaded = load_model(
            section.base_model,
            tokenizer=section.tokenizer,
            dtype=DTYPES[plan.precision],
            device=plan.device,
            trust_remote_code=section.trust_remote_code,
            quantize_4bit=plan.strategy == "qlora",
            revision=section.revision,
        )
        self.path = loaded.path
        self.device = loaded.device
        self.tokenizer = loaded.tokenizer
        # Texts are tokenised whole and cut by us; the tokenizer's own limit would only warn.
        self.tokenizer.model_max_length = VERY_LONG
        self.base_context = loaded.base_context
        self.vocabulary = None
        if job.scaling.vocabulary.add_tokens:
            self.vocabulary = grow_vocabulary(loaded.model, self.tokenizer, job.scaling.vocabulary.add_tokens)
        check_head(loaded.model)
        self.adapted: Any = attach(
            loaded.model, cast(Strategy, plan.strategy), rank=plan.lora.rank, alpha=plan.lora.alpha,
            dropout=plan.lora.dropout, target_modules=plan.lora.target_modules,
            use_rslora=plan.lora.use_rslora, seed=job.training.seed,
        )  # fmt: skip
        self.adapted.eval()
        self.dataset: Dataset = load_dataset(job.dataset, job.training.seed, target_context)
        self.room = InferenceRoom()
        self._rows: dict[int, TokenizedData] = {}
        self._held_out_texts: tuple[str, ...] | None = None
        self._measured_context: int | None = None

    @property
    def is_prefix(self) -> bool:
        """Whether a prefix is trained: rows are then not packed and positions not stretched."""
        return self.plan.strategy == "prefix_tuning"

    def rows_at(self, context: int) -> TokenizedData:
        """The dataset's training rows in pieces of at most `context` tokens."""
        if context not in self._rows:
            self._rows = {context: self._tokenize(self.dataset.train, context)}
        return self._rows[context]

    def _tokenize(self, rows: Sequence[Row], context: int) -> TokenizedData:
        section = self.job.dataset
        return tokenize_rows(
            rows, self.dataset.row_format, self.tokenizer, context=context, long_rows=section.long_rows,
            system_prompt=section.system_prompt, bad_rows=self.dataset.bad, source=self.dataset.source,
        )  # fmt: skip

    def text_rows(self, context: int) -> list[TokenRow]:
        """Training texts as rows of plain text in pieces of at most `context` tokens."""
        rows = [Row(number, {"text": text}) for number, text in enumerate(self.dataset.train_texts, start=1)]
        if not rows:
            return []
        return list(tokenize_rows(rows, "text", self.tokenizer, context=context, source="texts").rows)

    def long_rows(self, context: int) -> list[TokenRow]:
        """Rows that fill `context`: long texts in pieces, short texts or conversations joined.

        Joined rows see each other on purpose: far positions are learned from them.
        """
        source = self.text_rows(context) or list(self.rows_at(context).rows)
        return list(join_rows(source, context))

    @property
    def held_out_texts(self) -> tuple[str, ...]:
        """Texts to measure the context on; the held-out rows as the model sees them without any."""
        if self._held_out_texts is None:
            texts = self.dataset.held_out_texts
            if not texts:
                tokens = self._tokenize(self.dataset.held_out, 1 << 20).rows
                texts = tuple(self.tokenizer.decode(row.ids.tolist()) for row in tokens)
            self._held_out_texts = texts
        return self._held_out_texts

    def task_rows(self) -> list[TaskRow]:
        """Held-out questions with checkable answers."""
        if self.dataset.examples:
            return [row_from_example(example, "instruction") for example in self.dataset.examples]
        found = (
            row_from_conversation(conversation)
            for conversation in self.dataset.conversations(
                self.dataset.held_out, self.job.dataset.system_prompt
            )
        )
        return [row for row in found if row is not None]

    @property
    def measured_context(self) -> int:
        """Window the probes call the base context: the model's own.

        Shorter, by halves, only where the context stays and the held-out text is too little for the whole.
        """
        if self._measured_context is None:
            window = self.base_context
            if self.plan.target_context == self.base_context:
                held = sum(len(self.tokenizer(text).input_ids) for text in self.held_out_texts)
                while window > SHORTEST_WINDOW and held < MIN_DOCUMENTS * window:
                    window //= 2
            self._measured_context = window
        return self._measured_context

    def suite(self, context: PhaseContext) -> Suite:
        """The probes of this model. Limits that one measurement was brought down to hold for the next."""
        self.room.on_halving = context.note
        return Suite(
            self.adapted, self.tokenizer, self.held_out_texts, self.task_rows(), self.job.evaluation,
            self.measured_context, self.job.training.seed, context.progress,
            ends_turns=self.dataset.row_format != "text", room=self.room,
        )  # fmt: skip

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
        self, phase: PhasePlan, rows: Sequence[TokenRow], replay: Sequence[TokenRow], steps: int
    ) -> Training:
        """Batches, optimiser settings and a fresh optimiser for one phase."""
        section = self.job.training
        batches = Batches(
            rows, context=phase.context, batch_tokens=phase.batch_tokens,
            micro_batch_tokens=phase.micro_batch_tokens, seed=section.seed, text_rows=replay,
            replay_fraction=section.replay_fraction, packed=not self.is_prefix,
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

    def run(self, context: PhaseContext, training: Training, until: int | None = None) -> int:
        """Train until step `until` (all when None); returns the steps done. Every step is reported.

        Raises:
            BreakerTrippedError, LimitError, InterruptedPhase: see `PhaseContext.steps`.
        """
        objective = make_objective("sft")
        if not training.state.step:
            context.note(f"training layers {plan_fast_path(self.adapted).sentence()}")

        def capture() -> Files:
            return {**self.files(), **state_files(training.state)}

        def begin(guard: Callable[[Any], bool]) -> Iterator[Any]:
            return steps_within_memory(self, context, training, objective, guard)

        for _ in context.steps(begin, capture):
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

    def token_report(self) -> TokenReport:
        """What tokenising the training rows at the base context found."""
        return self.rows_at(self.base_context).report
