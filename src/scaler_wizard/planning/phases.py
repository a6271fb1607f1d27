"""One phase fitted into one machine: micro-batch, checkpointing, predicted memory, time and disk.

What the plans of all recipes share. Knows neither what a phase is for nor which phases a recipe has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from scaler_wizard.errors import DoesNotFitError
from scaler_wizard.planning.cost import checkpoint_bytes, train_seconds, trained_parameters
from scaler_wizard.planning.facts import ModelFacts
from scaler_wizard.planning.fit import Fit, fits, what_would_fit
from scaler_wizard.planning.lora import DEFAULT_ROW_TOKENS, ROWS_PER_BATCH
from scaler_wizard.planning.memory import DeviceKind, MemoryEstimate, MemorySettings, estimate_for
from scaler_wizard.planning.micro_batch import learned_size
from scaler_wizard.planning.settings import Settings
from scaler_wizard.specs.sections import OptimiserSection
from scaler_wizard.store.learned_sizes import LearnedSize

GateKind = Literal["none", "adapt", "expand", "finish"]

MEMORY_FRACTION = 0.9
# Larger micro-batches no longer raise the matrix rate, they only cost memory.
ENOUGH_TOKENS = {"cpu": 4096, "cuda": 16384}


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
class PhaseBuilder:
    """Builds phases from settings; `notes` collects what was chosen on the way."""

    facts: ModelFacts
    settings: Settings
    training: OptimiserSection
    data: DataSummary | None
    notes: list[str]
    learned: tuple[LearnedSize, ...] = ()
    """Micro-batch sizes that earlier runs were brought down to by lack of memory."""

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        lora = self.settings.lora
        return trained_parameters(self.facts, self.settings.strategy, lora.rank, lora.target_modules)

    def row(self, context: int) -> int:
        """Longest training row in a context: the data's, or an assumed one."""
        return max(16, min(context, self.data.longest if self.data else DEFAULT_ROW_TOKENS))

    def batch_tokens(self, row: int) -> int:
        """Tokens of one optimiser step, where the longest row has `row`."""
        return max(row, self.training.batch_tokens or ROWS_PER_BATCH * row)

    def evaluation(
        self, name: str, title: str, context: int, seconds: float, disk_bytes: int = 1_000_000
    ) -> PhasePlan:
        """A phase that only measures.

        Raises:
            DoesNotFitError: not even evaluating fits.
        """
        memory = estimate_for(self.facts, self._memory(0, context, False))
        fit = fits(memory, self.settings.hardware, MEMORY_FRACTION)
        if not fit.ok:
            row = self.row(context)
            smallest = self._memory(row, context, True)
            raise self._does_not_fit(f"evaluating {self.facts.name} alone", fit, smallest, row)
        return PhasePlan(
            name, title, context, 1.0, 0, 0, 0, False, memory, seconds, disk_bytes, "none"
        )  # fmt: skip

    def train(
        self,
        name: str,
        title: str,
        context: int,
        row: int,
        steps: int,
        *,
        gate: GateKind = "none",
        trainings: int = 1,
        evaluation_seconds: float = 0.0,
        export_bytes: int = 0,
        extra: Callable[[MemoryEstimate], MemoryEstimate] = lambda estimate: estimate,
    ) -> PhasePlan:
        """A phase that trains.

        Args:
            row: tokens of the longest row.
            trainings: how often the steps are done.
            export_bytes: written beside the checkpoint.
            extra: adds to the estimate what this phase alone holds in memory.

        Raises:
            DoesNotFitError: no micro-batch fits; its `todo` says what would.
        """
        batch = self.batch_tokens(row)
        memory_settings = self._fit(name, batch, row, context, extra)
        micro, checkpointing = memory_settings.micro_batch_tokens, memory_settings.activation_checkpointing
        seconds = train_seconds(
            self.facts, self.settings.hardware, precision=self.settings.precision,
            strategy=self.settings.strategy, trained=self.trained, row=row, batch_tokens=batch,
            micro_batch_tokens=micro, steps=steps, checkpointing=checkpointing,
        )  # fmt: skip
        return PhasePlan(
            name=name,
            title=title,
            context=context,
            factor=context / self.facts.base_context,
            steps=steps,
            batch_tokens=batch,
            micro_batch_tokens=micro,
            activation_checkpointing=checkpointing,
            memory=extra(estimate_for(self.facts, memory_settings)),
            seconds=trainings * seconds + evaluation_seconds,
            disk_bytes=checkpoint_bytes(self.trained) + export_bytes,
            gate=gate,
        )

    def _memory(self, micro: int, context: int, checkpointing: bool) -> MemorySettings:
        device: DeviceKind = "cuda" if self.settings.hardware.gpus else "cpu"
        lora = self.settings.lora
        return MemorySettings(
            self.settings.strategy, lora.rank, lora.target_modules, self.settings.precision, micro, context,
            checkpointing, device, lora.dropout,
        )  # fmt: skip

    def _fit(
        self,
        name: str,
        batch: int,
        row: int,
        context: int,
        extra: Callable[[MemoryEstimate], MemoryEstimate],
    ) -> MemorySettings:
        """The largest micro-batch that fits, band included; then checkpointing; else an error that helps."""
        hardware = self.settings.hardware
        ways = self._ways(batch, row, context)
        verdicts = [fits(extra(estimate_for(self.facts, way)), hardware, MEMORY_FRACTION) for way in ways]
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
        training = self.training
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
