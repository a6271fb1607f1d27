"""Several processes that train one model: who does what of a step, and how their gradients become one.

`train` talks to a `Ranks`: `ALONE` for one process, a `Group` for several that torchrun has started. The sum
over all ranks of the gradients of loss sums, divided by the step's targets, is the gradient of one process
that does the whole step, however many targets each rank holds; so losses and weights agree but for the order
of sums. Trained parameters that are whole on every rank (adapters) are summed here; parameters sharded by
`training.sharded` are summed by FSDP2 in the backward pass.

A rank that is lost is an error on the others, never a hang: every operation has a timeout. Processes speak to
this machine's loopback address alone unless a person allows more: the traffic is neither encrypted nor
authenticated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from scaler_wizard.data.batches import Step
from scaler_wizard.errors import ProcessGroupError
from scaler_wizard.training.launch import Launch, stay_local
from scaler_wizard.training.sharing import Share, share_step
from scaler_wizard.training.state import TrainState, gradient_norm

DEFAULT_TIMEOUT_SEC = 300.0
# Gradients are copied into one buffer of about this size for each collective operation.
BUCKET_BYTES = 1 << 26


class Ranks(Protocol):
    """The processes of a training, as one of them sees them."""

    @property
    def rank(self) -> int:
        """This process's number; 0 writes files."""

    def share(self, step: Step) -> Sequence[Share]:
        """This rank's passes of a step."""

    def seed(self, seed: int) -> int:
        """A seed of this rank's own for dropout."""

    def sum_up(self, state: TrainState, sums: Tensor) -> Tensor:
        """Sum gradients over the ranks in place, and `sums` [n], which is returned."""

    def gradient_norm(self, state: TrainState) -> float:
        """L2 norm of all gradients together, the same on every rank."""

    def agree(self, verdict: bool) -> bool:
        """True where every rank says True."""


class Alone:
    """One process."""

    rank = 0

    def share(self, step: Step) -> Sequence[Share]:
        """All of it."""
        return [Share(micro, True) for micro in step.micro_batches]

    def seed(self, seed: int) -> int:
        """The seed itself."""
        return seed

    def sum_up(self, state: TrainState, sums: Tensor) -> Tensor:
        """Nothing to add."""
        return sums

    def gradient_norm(self, state: TrainState) -> float:
        """The state's own."""
        return state.gradient_norm()

    def agree(self, verdict: bool) -> bool:
        """The verdict itself."""
        return verdict


ALONE = Alone()


@contextmanager
def connected(
    launch: Launch,
    device_type: str = "cpu",
    *,
    allow_network: bool = False,
    timeout_sec: float = DEFAULT_TIMEOUT_SEC,
) -> Iterator[Group]:
    """Join the processes of a launch (gloo on the CPU, NCCL on CUDA), and leave at the end.

    Args:
        allow_network: also meet at an address of another machine.
        timeout_sec: how long one operation waits for a rank.

    Raises:
        ProcessGroupError: an address that is not this machine's, or ranks that do not come.
    """
    if not allow_network:
        stay_local(launch.address)
    if device_type == "cuda":
        torch.cuda.set_device(launch.local_rank)
    timeout = timedelta(seconds=timeout_sec)
    with _naming_the_loss(launch.rank, "meeting the other processes"):
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=timeout)
        # Only gloo can say which rank did not come to a barrier.
        control = dist.new_group(backend="gloo", timeout=timeout) if device_type == "cuda" else None
    try:
        device = torch.device("cuda", launch.local_rank) if device_type == "cuda" else torch.device("cpu")
        yield Group(launch.rank, launch.world, device, timeout, control)
    finally:
        dist.destroy_process_group()


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether an error inside a forward or backward pass came from FSDP2's own communication."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text


@contextmanager
def _naming_the_loss(rank: int, what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ProcessGroupError(
            f"rank {rank} lost the other processes while {what} ({reason})",
            "every process alive and at the same step",
            "look at the other processes' output, then start again: the last saved state is whole",
        ) from None


class Group:
    """Processes that torchrun has started, from inside one of them; made by `connected`."""

    def __init__(
        self,
        rank: int,
        world: int,
        device: torch.device,
        timeout: timedelta,
        control: dist.ProcessGroup | None,
    ) -> None:
        self.rank, self.world, self.device = rank, world, device
        self._timeout, self._control = timeout, control

    def share(self, step: Step) -> Sequence[Share]:
        """This rank's passes; as many as every other rank's, because sharded layers meet in each."""
        return share_step(step, self.world)[self.rank]

    def seed(self, seed: int) -> int:
        """The seed itself on rank 0: dropout draws other masks on every rank."""
        return seed + (self.rank << 32)

    def sum_up(self, state: TrainState, sums: Tensor) -> Tensor:
        """See `Ranks.sum_up`. A parameter without a gradient on any rank keeps none."""
        whole = [item for item in state.parameters.values() if not isinstance(item, DTensor)]
        present = torch.tensor([float(item.grad is not None) for item in whole], device=self.device)
        self._reduce(present, "comparing gradients", dist.ReduceOp.MAX)
        used = [item for item, there in zip(whole, present.tolist(), strict=True) if there]
        for item in used:
            if item.grad is None:
                item.grad = torch.zeros_like(item)
        for bucket in _buckets(used):
            gradients = [item.grad for item in bucket if item.grad is not None]
            accumulate = torch.promote_types(gradients[0].dtype, torch.float32)
            flat = torch.cat([gradient.flatten().to(accumulate) for gradient in gradients])
            self._reduce(flat, "summing gradients")
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        self._reduce(sums, "summing losses")
        return sums

    def gradient_norm(self, state: TrainState) -> float:
        """See `Ranks.gradient_norm`."""
        gradients = [item.grad for item in state.parameters.values() if item.grad is not None]
        local = [item.to_local() for item in gradients if isinstance(item, DTensor)]
        if not local:
            return state.gradient_norm()
        squares = self._reduce(_squares(local, self.device), "measuring gradients")
        whole = [item for item in gradients if not isinstance(item, DTensor)]
        return float((squares + _squares(whole, self.device)).sqrt())

    def agree(self, verdict: bool) -> bool:
        """True where every rank says True."""
        votes = torch.tensor(float(verdict), device=self.device)
        return bool(self._reduce(votes, "agreeing on a step", dist.ReduceOp.MIN) > 0)

    def check_same(self, what: str, numbers: Iterable[float]) -> None:
        """Compare numbers that must be equal everywhere: weights, rows, settings.

        Raises:
            ProcessGroupError: they differ.
        """
        mine = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        # The smallest and the largest of each, in one operation: min(x) = -max(-x).
        both = self._reduce(torch.cat([mine, -mine]), f"comparing {what}", dist.ReduceOp.MAX)
        largest, smallest = both[: len(mine)], -both[len(mine) :]
        if not torch.equal(largest, smallest):
            raise ProcessGroupError(
                f"{what} differ between the processes",
                "the same model, data, settings and seed in each",
                "start all of them with the same command and files",
            )

    def barrier(self, what: str) -> None:
        """Wait for every rank, at most the timeout; rank 0's error names the rank that did not come."""
        with _naming_the_loss(self.rank, what):
            dist.monitored_barrier(self._control or dist.group.WORLD, timeout=self._timeout)

    def _reduce(self, values: Tensor, what: str, operation: dist.ReduceOp.RedOpType | None = None) -> Tensor:
        if values.numel():
            with _naming_the_loss(self.rank, what):
                dist.all_reduce(values, operation if operation is not None else dist.ReduceOp.SUM)
        return values


def checksum(state: TrainState) -> list[float]:
    """Numbers that tell two states apart: the step, and sums of each whole master weight."""
    numbers = [float(state.step)]
    for item in state.masters.values():
        if not isinstance(item, DTensor):
            exact = item.detach().double()
            numbers += [float(exact.sum()), float(exact.abs().sum())]
    return numbers


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Neighbours of one format, about `BUCKET_BYTES` together."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for item in parameters:
        if bucket and (item.dtype != bucket[0].dtype or size + item.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(item)
        size += item.nbytes
    if bucket:
        yield bucket


def _squares(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Sum of squares [], fp64, from the norms that `TrainState.gradient_norm` takes."""
    norms = [gradient_norm(item).double() for item in tensors]
    return torch.stack([*norms, torch.zeros((), dtype=torch.float64, device=device)]).square().sum()
