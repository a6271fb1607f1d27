"""The plan of a run, and how a `grow` run is planned: phases with predicted memory, time and disk.

Pure; loads no weights. `make_plan` is a function of job, machine, model facts, earlier runs and a summary of
the data. It does not know how a phase is executed; recipes read what it decided.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from scaler_wizard.errors import DoesNotFitError, SpecError
from scaler_wizard.planning.context import context_schedule
from scaler_wizard.planning.cost import evaluation_seconds
from scaler_wizard.planning.facts import ModelFacts, facts_digest
from scaler_wizard.planning.hardware import GIB, Hardware
from scaler_wizard.planning.history import HistoryProposal, RunRecord, propose
from scaler_wizard.planning.lora import DEFAULT_ROW_TOKENS
from scaler_wizard.planning.memory import BYTES, MemoryEstimate, MemoryLine, with_line
from scaler_wizard.planning.phases import (
    MEMORY_FRACTION,
    DataSummary,
    GateKind,
    PhaseBuilder,
    PhasePlan,
)
from scaler_wizard.planning.settings import LoraPlan, Settings, resolve
from scaler_wizard.planning.templates import SHIPPED, Template
from scaler_wizard.specs.grow import GrowJob
from scaler_wizard.specs.job import Job
from scaler_wizard.store.learned_sizes import LearnedSize

__all__ = [
    "MEMORY_FRACTION",
    "DataSummary",
    "GateKind",
    "PhasePlan",
    "Plan",
    "assemble",
    "make_plan",
    "phase_names",
    "replace_memory",
]

ROPE_CANDIDATES = 6


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
    build = PhaseBuilder(facts, settings, job.training, data, notes, tuple(learned))
    builder = _Builder(job, build, teacher)
    phases = builder.phases(lengths)
    return assemble(
        job, facts, settings, phases, notes, context_schedule=lengths,
        proposals=propose(history, settings.hardware, facts, settings.learning_rate),
        save_disk="set export.merged: false",
    )  # fmt: skip


def assemble(
    job: Job,
    facts: ModelFacts,
    settings: Settings,
    phases: tuple[PhasePlan, ...],
    notes: Sequence[str],
    *,
    context_schedule: tuple[int, ...] = (),
    proposals: tuple[HistoryProposal, ...] = (),
    save_disk: str = "",
) -> Plan:
    """The plan of any recipe from its phases.

    Args:
        save_disk: what a person could set to write less, where there is such a thing.

    Raises:
        DoesNotFitError: not enough disk.
    """
    disk = sum(phase.disk_bytes for phase in phases)
    if disk > settings.hardware.disk_free:
        ways = ["free some space", "choose another workspace", save_disk]
        raise DoesNotFitError(
            f"the run writes {disk / GIB:.2f} GiB and {settings.hardware.disk_free / GIB:.2f} GiB "
            f"are free on disk",
            "room for every checkpoint and the export",
            ", or ".join(way for way in ways if way),
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
        target_context=context_schedule[-1] if context_schedule else facts.base_context,
        context_schedule=context_schedule,
        phases=phases,
        seconds=sum(phase.seconds for phase in phases),
        seconds_basis=f"{settings.hardware.flops_source}; right within a factor of 3 until steps "
        f"have been timed",
        disk_bytes=disk,
        notes=tuple(dict.fromkeys(notes)),
        proposals=proposals,
    )


def phase_names(doublings: int) -> tuple[str, ...]:
    """P0, P1, then P2 for the first longer context, P3, P3.2, P3.3 ... for further ones, then P4."""
    middle = ["P2", "P3", *(f"P3.{index}" for index in range(2, doublings))]
    return ("P0", "P1", *middle[:doublings], "P4")


@dataclass(frozen=True)
class _Builder:
    """The phases of `grow`."""

    job: GrowJob
    build: PhaseBuilder
    teacher: ModelFacts | None

    def phases(self, lengths: Sequence[int]) -> tuple[PhasePlan, ...]:
        """P0 to P4 for the lengths after the base context."""
        names = phase_names(len(lengths))
        base = self.build.facts.base_context
        final = lengths[-1] if lengths else base
        row = self.build.row(base)
        seconds = self._evaluation_seconds(base, 1)
        phases = [self.build.evaluation("P0", "Load, hash, evaluate the base", base, seconds)]
        phases.append(self._train("P1", "Adapt at the base context", base, row))
        for name, before, length in zip(names[2:-1], (base, *lengths), lengths, strict=False):
            phases.append(self._train(name, f"Context {before:,} -> {length:,}", length, length))
        title = "Final training, export" if self.job.training.final_steps else "Evaluate, merge, export"
        phases.append(self._train("P4", title, final, final if lengths else row))
        return tuple(phases)

    def _train(self, name: str, title: str, context: int, row: int) -> PhasePlan:
        expanding = name not in ("P1", "P4")
        candidates = ROPE_CANDIDATES if expanding and self.job.scaling.rope_method == "auto" else 1
        distils = name == "P4" and self.job.scaling.distillation is not None
        return self.build.train(
            name, title, context, row, self._steps(name, self.build.batch_tokens(row)),
            gate="adapt" if name == "P1" else "finish" if name == "P4" else "expand",
            # Distillation trains twice: cross-entropy alone, with the same budget, stands beside it.
            trainings=2 if distils else 1,
            evaluation_seconds=self._evaluation_seconds(context, candidates + expanding),
            export_bytes=self._export_bytes(self.build.trained) if name == "P4" else 0,
            extra=self._with_teacher if distils else lambda estimate: estimate,
        )  # fmt: skip

    def _steps(self, name: str, batch: int) -> int:
        training = self.job.training
        if name == "P4":
            return training.final_steps
        if name != "P1":
            return training.context_steps
        if training.epochs is None or self.build.data is None:
            return training.max_steps
        rows = training.epochs * self.build.data.tokens_estimate / batch
        return min(training.max_steps, max(1, math.ceil(rows)))

    def _with_teacher(self, estimate: MemoryEstimate) -> MemoryEstimate:
        if self.teacher is None:
            return estimate
        size = self.teacher.parameters * BYTES[self.build.settings.precision]
        text = f"weights of the teacher {self.teacher.name} while its logits are cached"
        return with_line(estimate, MemoryLine("teacher", size, text, 0.02))

    def _evaluation_seconds(self, context: int, passes: int) -> float:
        evaluation, settings = self.job.evaluation, self.build.settings
        sequences = evaluation.documents + evaluation.needles_per_depth * len(evaluation.depths)
        return passes * evaluation_seconds(
            self.build.facts, settings.hardware, settings.precision, sequences, context
        )

    def _export_bytes(self, trained: int) -> int:
        adapted = self.build.settings.strategy != "full"
        merged = self.build.facts.weight_bytes if self.job.export.merged else 0
        return merged + (4 * trained if self.job.export.adapter and adapted else 0)


def replace_memory(plan: Plan, name: str, memory: MemoryEstimate) -> Plan:
    """The plan with one phase's memory corrected, for example by `memory.calibrate` after a measured step."""
    phases = tuple(
        dataclasses.replace(phase, memory=memory) if phase.name == name else phase for phase in plan.phases
    )
    return dataclasses.replace(plan, phases=phases)
