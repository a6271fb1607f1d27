"""A training within the memory there is: its micro-batch sizes, where they come from and who is told.

Binds the pieces: the plan's size, one measured step that corrects it, halving when an allocation fails or
the kernel killed the attempt before, a mark that survives this process, a note to the person, and the
workspace's memory of what did not fit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from scaler_wizard.errors import TrainingMemoryError
from scaler_wizard.planning.facts import read_facts
from scaler_wizard.planning.hardware import probe_hardware
from scaler_wizard.planning.memory import DeviceKind, MemorySettings
from scaler_wizard.planning.micro_batch import corrected_size, learned_key, machine_key
from scaler_wizard.planning.phases import ENOUGH_TOKENS
from scaler_wizard.runs.context import PhaseContext
from scaler_wizard.safety.limits import check_memory
from scaler_wizard.store.learned_sizes import Cause, LearnedSize, remember
from scaler_wizard.store.oom_kills import oom_kills
from scaler_wizard.store.training_mark import (
    TrainingMark,
    killed_for_memory,
    read_mark,
    write_mark,
)
from scaler_wizard.store.workspace import Workspace
from scaler_wizard.training.backoff import Halving, halve, train_within_memory
from scaler_wizard.training.forward import Objective
from scaler_wizard.training.loop import Guard, StepResult
from scaler_wizard.training.memory import peak_memory_bytes, reset_peak
from scaler_wizard.training.out_of_memory import release_memory

if TYPE_CHECKING:
    from scaler_wizard.recipes.session import ModelSession, Training

WORTH_RAISING = 1.25
"""A micro-batch becomes larger after the first step only where it becomes so much larger."""


def steps_within_memory(
    session: ModelSession,
    context: PhaseContext,
    training: Training,
    objective: Objective,
    guard: Guard,
    part: str = "",
) -> Iterator[StepResult]:
    """The steps of a training, each repeated in halved micro-batches where memory runs out.

    Args:
        part: which training of the phase, where there are several.

    Raises:
        TrainingMemoryError: one row at a time is too much.
    """
    keeper = _Keeper(session, context, training, "/".join(filter(None, (context.phase, part))))
    keeper.begin()
    try:
        for result in train_within_memory(
            session.adapted, training.batches, objective, training.settings, sizes=training.sizes,
            on_halving=keeper.halved, guard=guard, state=training.state, device=session.device,
        ):  # fmt: skip
            keeper.measure(result)
            keeper.relieve()
            yield result
    finally:
        with contextlib.suppress(OSError):  # a full disk is reported by what must be written
            keeper.mark(active=False)


@dataclass
class _Keeper:
    session: ModelSession
    context: PhaseContext
    training: Training
    label: str
    oom_kills: int | None = None

    def begin(self) -> None:
        """Take up the sizes of an earlier attempt, half of them where it was killed for memory."""
        sizes, mark = self.training.sizes, read_mark(self.context.run_dir)
        self.oom_kills = oom_kills()
        if mark is not None and mark.training == self.label:
            sizes.changes = list(mark.sizes)
            if mark.attempt < self.context.link.token and killed_for_memory(mark, self.oom_kills):
                words = f"the system killed attempt {mark.attempt} because memory ran out"
                self.halved(halve(self.training.batches, sizes, self.training.state.step, words), "killed")
        self.mark(active=True)
        reset_peak(self.session.device)

    def mark(self, *, active: bool) -> None:
        """What this attempt is doing, for the one after it."""
        mark = TrainingMark(
            self.label,
            self.context.link.token,
            tuple(self.training.sizes.changes),
            active,
            self.oom_kills,
        )
        write_mark(self.context.run_dir, mark)

    def halved(self, halving: Halving, cause: Cause = "out_of_memory") -> None:
        """Keep the new size, and say so, before the step is repeated."""
        self.mark(active=True)
        self._learn(halving.tokens, cause)
        what, then = "memory ran out at", "it is repeated with"
        if cause == "measured":
            what, then = "too much memory was in use before", "from there on there are"
        self.context.note(
            f"{what} step {halving.step} with forward passes of {halving.tokens_before:,} tokens "
            f"({halving.passes_before} a step); {then} at most {halving.tokens:,} ({halving.passes} a step). "
            f"Every step keeps its rows and their order ({halving.found})"
        )

    def relieve(self) -> None:
        """Smaller steps from the next one on where more than the contract allows is in use.

        On a CPU this comes long before an allocation fails: the system promises memory it does not have.
        """
        context, training = self.context, self.training
        used, limit = context.read_memory(), context.memory_limit
        if check_memory(used, limit) != "over":
            return
        release_memory()
        found = f"{used / 2**30:.2f} GiB of {limit.limit_bytes / 2**30:.2f} GiB"
        # One row a pass already: then the engine stops the run, with advice, if it is still too much.
        with contextlib.suppress(TrainingMemoryError):
            self.halved(halve(training.batches, training.sizes, training.state.step, found), "measured")

    def measure(self, result: StepResult) -> None:
        """After the first step of a training whose size nobody fixed: correct it by what the step took."""
        session, training = self.session, self.training
        fixed = session.micro_batch_is_fixed or session.is_prefix
        if fixed or result.step != 1 or len(training.sizes.changes) > 1:
            return
        planned = self._settings()
        ran = max(micro.n_tokens for micro in training.batches.step(0).micro_batches)
        batches = training.batches.batches
        most = max(batches.longest, min(batches.batch_tokens, ENOUGH_TOKENS[session.plan.device]))
        peak = peak_memory_bytes(session.device)
        tokens = corrected_size(
            read_facts(session.path, allow_remote_code=session.remote_code), planned, ran=ran,
            measured=peak, limit=self.context.memory_limit.limit_bytes, least=batches.longest, most=most,
        )  # fmt: skip
        if planned.micro_batch_tokens <= tokens < WORTH_RAISING * planned.micro_batch_tokens:
            return
        training.sizes.change(1, tokens)
        self.mark(active=True)
        if tokens < planned.micro_batch_tokens:
            self._learn(tokens, "measured")
        self.context.note(
            f"the first step took {peak / 2**30:.2f} GiB with {ran:,} tokens a forward pass: from here on at "
            f"most {tokens:,} instead of {planned.micro_batch_tokens:,}"
        )

    def _settings(self) -> MemorySettings:
        plan, phase = self.session.plan, self.training.phase
        return MemorySettings(
            plan.strategy, plan.lora.rank, plan.lora.target_modules, plan.precision,
            self.training.sizes.at(0), phase.context, phase.activation_checkpointing,
            cast(DeviceKind, plan.device),
        )  # fmt: skip

    def _learn(self, tokens: int, cause: Cause) -> None:
        """Remember for this model on this machine."""
        workspace = Workspace(self.context.run_dir.path.parent.parent)
        hardware = probe_hardware(workspace.root)
        if self.session.device.type == "cpu":
            hardware = hardware.without_gpus()
        settings = replace(self._settings(), micro_batch_tokens=0)
        key = learned_key(self.session.plan.model_digest, machine_key(hardware), settings)
        # What this training itself holds is free to the next one.
        free = hardware.memory_available + peak_memory_bytes(self.session.device)
        remember(workspace.learned, LearnedSize(key, tokens, free, cause, time.time()))
