"""The plan of a `grow` run: phases with predicted memory, time and disk. Pure; loads no weights.

`make_plan` is a function of job, machine, model facts, earlier runs and a summary of the data. It does
not know how a phase is executed; recipes read what it decided.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from scaler_wizard.errors import DoesNotFitError, SpecError
from scaler_wizard.planning.context import context_schedule
from scaler_wizard.planning.cost import (
    checkpoint_bytes,
    evaluation_seconds,
    train_seconds,
    trained_parameters,
)
from scaler_wizard.planning.facts import ModelFacts, facts_digest
from scaler_wizard.planning.fit import Fit, fits, what_would_fit
from scaler_wizard.planning.hardware import GIB, Hardware
from scaler_wizard.planning.history import HistoryProposal, RunRecord, propose
from scaler_wizard.planning.lora import DEFAULT_ROW_TOKENS, ROWS_PER_BATCH
from scaler_wizard.planning.memory import (
    BYTES,
    DeviceKind,
    MemoryEstimate,
    MemoryLine,
    MemorySettings,
    estimate_for,
    with_line,
)
from scaler_wizard.planning.micro_batch import learned_size
from scaler_wizard.planning.settings import LoraPlan, Settings, resolve
from scaler_wizard.planning.templates import SHIPPED, Template
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.store.learned_sizes import LearnedSize

GateKind = Literal["none", "adapt", "expand", "finish"]

MEMORY_FRACTION = 0.9
# Larger micro-batches no longer raise the matrix rate, they only cost memory.
ENOUGH_TOKENS: Mapping[str, int] = {"cpu": 4096, "cuda": 16384}
ROPE_CANDIDATES = 6


@dataclass(frozen=True)
class DataSummary:
    """What planning knows of the training data without a tokenizer."""

    rows: int
    tokens_estimate: int
    longest: int
    """Tokens of the longest row."""
    format: str


@dataclass(frozen=True)
class PhasePlan:
    """One phase. `steps` and `seconds` are upper bounds: a length that passes untrained uses no steps."""

    name: str
    title: str
    context: int
    factor: float
    """Context divided by the model's original one."""
    steps: int
    batch_tokens: int
    micro_batch_tokens: int
    activation_checkpointing: bool
    memory: MemoryEstimate
    seconds: float
    disk_bytes: int
    gate: GateKind
    """What the gate before this phase asks."""


@dataclass(frozen=True)
class Plan:
    """Everything decided before a run."""

    recipe: str
    job_name: str
    model: str
    model_digest: str
    hardware: str
    device: str
    memory_limit: int
    precision: str
    strategy: str
    template: str | None
    lora: LoraPlan
    learning_rate: float
    learning_rate_reason: str
    telemetry: str
    base_context: int
    target_context: int
    context_schedule: tuple[int, ...]
    phases: tuple[PhasePlan, ...]
    seconds: float
    seconds_basis: str
    disk_bytes: int
    notes: tuple[str, ...]
    proposals: tuple[HistoryProposal, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return dict(_adapter().dump_python(self, mode="json"))

    @classmethod
    def from_dict(cls, value: object) -> Plan:
        """The plan that `as_dict` described.

        Raises:
            SpecError: not a plan.
        """
        try:
            return _adapter().validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the plan"
            raise SpecError(
                f"the stored plan cannot be read at {place}: {first['msg']}", "a plan of this version",
                "make it again with `scaler plan`",
            ) from None  # fmt: skip

    def phase(self, name: str) -> PhasePlan:
        """The phase of that name."""
        return next(phase for phase in self.phases if phase.name == name)


@cache
def _adapter() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)


def make_plan(
    job: GrowJob,
    hardware: Hardware,
    facts: ModelFacts,
    history: Sequence[RunRecord] = (),
    *,
    data: DataSummary | None = None,
    templates: Mapping[str, Template] = SHIPPED,
    teacher: ModelFacts | None = None,
    learned: Sequence[LearnedSize] = (),
) -> Plan:
    """Plan a `grow` job.

    Args:
        history: this workspace's finished runs; they only add proposals.
        teacher: facts of the distillation teacher, whose weights then count in P4.
        learned: micro-batch sizes that earlier runs were brought down to by lack of memory.

    Raises:
        SpecError: unknown template, impossible target, missing GPU.
        LimitError: a context step of more than 2x.
        NotExtendableError: a longer context for a model without rotary positions.
        IncompatibleModelError: adapters on layers that the model does not have.
        DoesNotFitError: not enough memory or disk; its `todo` says what would fit.
    """
    if job.scaling.distillation is not None and not job.training.final_steps:
        raise SpecError(
            "scaling.distillation names a teacher and training.final_steps is 0",
            "steps for the last phase, in which the teacher is learned from",
            "set training.final_steps, or remove scaling.distillation",
        )
    settings = resolve(
        job, hardware, facts, templates,
        data_tokens=data.tokens_estimate if data else None, row_tokens=data.longest if data else None,
    )  # fmt: skip
    lengths = context_schedule(facts, settings.target_context, job.scaling.context_schedule)
    if lengths and settings.strategy == "prefix_tuning":
        raise SpecError(
            "scaling.strategy is prefix_tuning and a longer context is asked for: a prefix cannot be merged, "
            "and its file has no place for the stretched positions",
            "lora or full for a longer context",
            "set scaling.strategy: lora, or keep the base context",
        )
    notes = list(settings.notes)
    if data is None:
        notes.append(f"rows of at most {DEFAULT_ROW_TOKENS:,} tokens assumed: the data was not looked at")
    builder = _Builder(job, facts, settings, data, teacher, notes, tuple(learned))
    phases = builder.phases(lengths)
    disk = sum(phase.disk_bytes for phase in phases)
    if disk > settings.hardware.disk_free:
        raise DoesNotFitError(
            f"the run writes {disk / GIB:.2f} GiB and {settings.hardware.disk_free / GIB:.2f} GiB "
            f"are free on disk",
            "room for every checkpoint and the export",
            "free some space, choose another workspace, or set export.merged: false",
        )
    return Plan(
        recipe=job.recipe,
        job_name=job.name,
        model=facts.name,
        model_digest=facts_digest(facts),
        hardware=settings.hardware.describe(),
        device=settings.device,
        memory_limit=int(settings.hardware.memory_available * MEMORY_FRACTION),
        precision=settings.precision,
        strategy=settings.strategy,
        template=settings.template,
        lora=settings.lora,
        learning_rate=settings.learning_rate,
        learning_rate_reason=settings.learning_rate_reason,
        telemetry=settings.telemetry,
        base_context=facts.base_context,
        target_context=lengths[-1] if lengths else facts.base_context,
        context_schedule=lengths,
        phases=phases,
        seconds=sum(phase.seconds for phase in phases),
        seconds_basis=f"{settings.hardware.flops_source}; right within a factor of 3 until steps "
        f"have been timed",
        disk_bytes=disk,
        notes=tuple(dict.fromkeys(notes)),
        proposals=propose(history, settings.hardware, facts, settings.learning_rate),
    )


def phase_names(doublings: int) -> tuple[str, ...]:
    """P0, P1, then P2 for the first longer context, P3, P3.2, P3.3 ... for further ones, then P4."""
    middle = ["P2", "P3", *(f"P3.{index}" for index in range(2, doublings))]
    return ("P0", "P1", *middle[:doublings], "P4")


@dataclass(frozen=True)
class _Builder:
    """Builds phases from settings; `notes` collects what was chosen on the way."""

    job: GrowJob
    facts: ModelFacts
    settings: Settings
    data: DataSummary | None
    teacher: ModelFacts | None
    notes: list[str]
    learned: tuple[LearnedSize, ...] = ()

    def phases(self, lengths: Sequence[int]) -> tuple[PhasePlan, ...]:
        """P0 to P4 for the lengths after the base context."""
        names = phase_names(len(lengths))
        base = self.facts.base_context
        final = lengths[-1] if lengths else base
        phases = [self._baseline(base), self._train("P1", "Adapt at the base context", base, self._row(base))]
        for name, before, length in zip(names[2:-1], (base, *lengths), lengths, strict=False):
            phases.append(self._train(name, f"Context {before:,} -> {length:,}", length, length))
        title = "Final training, export" if self.job.training.final_steps else "Evaluate, merge, export"
        phases.append(self._train("P4", title, final, final if lengths else self._row(base)))
        return tuple(phases)

    def _row(self, context: int) -> int:
        """Longest training row at the base context: the data's, or an assumed one."""
        return max(16, min(context, self.data.longest if self.data else DEFAULT_ROW_TOKENS))

    def _baseline(self, context: int) -> PhasePlan:
        memory = estimate_for(self.facts, self._memory(0, context, False))
        fit = fits(memory, self.settings.hardware, MEMORY_FRACTION)
        if not fit.ok:
            row = self._row(context)
            smallest = self._memory(row, context, True)
            raise self._does_not_fit(f"evaluating {self.facts.name} alone", fit, smallest, row)
        return PhasePlan(
            "P0", "Load, hash, evaluate the base", context, 1.0, 0, 0, 0, False, memory,
            self._evaluation_seconds(context, 1), 1_000_000, "none",
        )  # fmt: skip

    def _train(self, name: str, title: str, context: int, row: int) -> PhasePlan:
        training, lora = self.job.training, self.settings.lora
        batch = max(row, training.batch_tokens or ROWS_PER_BATCH * row)
        memory_settings = self._fit(name, batch, row, context)
        micro, checkpointing = memory_settings.micro_batch_tokens, memory_settings.activation_checkpointing
        trained = trained_parameters(self.facts, self.settings.strategy, lora.rank, lora.target_modules)
        steps = self._steps(name, batch)
        # Distillation trains twice: the run with cross-entropy alone, of the same budget, stands beside it.
        trainings = 2 if name == "P4" and self.job.scaling.distillation is not None else 1
        seconds = train_seconds(
            self.facts, self.settings.hardware, precision=self.settings.precision,
            strategy=self.settings.strategy,
            trained=trained, row=row, batch_tokens=batch, micro_batch_tokens=micro, steps=steps,
            checkpointing=checkpointing,
        )  # fmt: skip
        expanding = name not in ("P1", "P4")
        candidates = ROPE_CANDIDATES if expanding and self.job.scaling.rope_method == "auto" else 1
        return PhasePlan(
            name=name,
            title=title,
            context=context,
            factor=context / self.facts.base_context,
            steps=steps,
            batch_tokens=batch,
            micro_batch_tokens=micro,
            activation_checkpointing=checkpointing,
            memory=self._estimate(name, memory_settings),
            seconds=trainings * seconds + self._evaluation_seconds(context, candidates + expanding),
            disk_bytes=checkpoint_bytes(trained) + (self._export_bytes(trained) if name == "P4" else 0),
            gate="adapt" if name == "P1" else "finish" if name == "P4" else "expand",
        )

    def _steps(self, name: str, batch: int) -> int:
        training = self.job.training
        if name == "P4":
            return training.final_steps
        if name != "P1":
            return training.context_steps
        if training.epochs is None or self.data is None:
            return training.max_steps
        return min(training.max_steps, max(1, math.ceil(training.epochs * self.data.tokens_estimate / batch)))

    def _memory(self, micro: int, context: int, checkpointing: bool) -> MemorySettings:
        device: DeviceKind = "cuda" if self.settings.hardware.gpus else "cpu"
        lora = self.settings.lora
        return MemorySettings(
            self.settings.strategy, lora.rank, lora.target_modules, self.settings.precision, micro, context,
            checkpointing, device, lora.dropout,
        )  # fmt: skip

    def _estimate(self, name: str, settings: MemorySettings) -> MemoryEstimate:
        estimate = estimate_for(self.facts, settings)
        if self.teacher is None or name != "P4" or self.job.scaling.distillation is None:
            return estimate
        size = self.teacher.parameters * BYTES[settings.precision]
        text = f"weights of the teacher {self.teacher.name} while its logits are cached"
        return with_line(estimate, MemoryLine("teacher", size, text, 0.02))

    def _fit(self, name: str, batch: int, row: int, context: int) -> MemorySettings:
        """The largest micro-batch that fits, band included; then checkpointing; else an error that helps."""
        hardware = self.settings.hardware
        ways = self._ways(batch, row, context)
        verdicts = [fits(self._estimate(name, way), hardware, MEMORY_FRACTION) for way in ways]
        for wanted in ("safe", "ok"):
            for way, verdict in zip(ways, verdicts, strict=True):
                if verdict.ok and (wanted == "ok" or not verdict.tight):
                    if verdict.tight:
                        self.notes.append(f"{name} is tight: {verdict.text}")
                    whole = [v for w, v in zip(ways, verdicts, strict=True) if not w.activation_checkpointing]
                    if way.activation_checkpointing and whole:
                        self.notes.append(
                            f"{name} recomputes activations (about a third more time): without activation "
                            f"checkpointing, {whole[-1].text}"
                        )
                    return way
        raise self._does_not_fit(f"{name} at {context:,} tokens", verdicts[-1], ways[-1], row)

    def _does_not_fit(self, what: str, verdict: Fit, asked: MemorySettings, row: int) -> DoesNotFitError:
        proposal = what_would_fit(
            self.facts, asked, self.settings.hardware, min_micro_batch=row, fraction=MEMORY_FRACTION
        )
        return DoesNotFitError(
            f"{what}: {verdict.text}",
            f"at most {MEMORY_FRACTION:.0%} of the free memory (the contract's guarantee)",
            f"here is what would fit: {proposal.text}" if proposal.fit.ok else proposal.text,
        )

    def _ways(self, batch: int, row: int, context: int) -> list[MemorySettings]:
        """Settings to try, best first. What the job fixes is not varied."""
        training = self.job.training
        asked = training.micro_batch_tokens
        if asked is not None and asked < row:
            self.notes.append(f"micro-batches hold at least one row: {asked:,} tokens raised to {row:,}")
        top = max(row, min(batch, asked or ENOUGH_TOKENS[self.settings.device]))
        checkpointing = {"on": (True,), "off": (False,), "auto": (False, True)}[
            training.activation_checkpointing
        ]
        ways = []
        for flag in checkpointing:
            sizes = [top if asked is not None else max(row, self._cap(self._memory(top, context, flag)))]
            while asked is None and sizes[-1] > row:
                sizes.append(max(row, sizes[-1] // 2))
            ways += [self._memory(size, context, flag) for size in sizes]
        return ways

    def _cap(self, settings: MemorySettings) -> int:
        """The settings' micro-batch, or the smaller one that an earlier run was brought down to."""
        tokens, note = learned_size(self.facts, self.settings.hardware, settings, self.learned)
        self.notes.extend(note)
        return tokens

    def _evaluation_seconds(self, context: int, passes: int) -> float:
        evaluation = self.job.evaluation
        sequences = evaluation.documents + evaluation.needles_per_depth * len(evaluation.depths)
        return passes * evaluation_seconds(
            self.facts, self.settings.hardware, self.settings.precision, sequences, context
        )

    def _export_bytes(self, trained: int) -> int:
        adapted = self.settings.strategy != "full"
        merged = self.facts.weight_bytes if self.job.export.merged else 0
        return merged + (4 * trained if self.job.export.adapter and adapted else 0)


def replace_memory(plan: Plan, name: str, memory: MemoryEstimate) -> Plan:
    """The plan with one phase's memory corrected, for example by `memory.calibrate` after a measured step."""
    phases = tuple(
        dataclasses.replace(phase, memory=memory) if phase.name == name else phase for phase in plan.phases
    )
    return dataclasses.replace(plan, phases=phases)
