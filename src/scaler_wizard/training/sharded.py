"""FSDP2: the weights of a model divided among processes, gathered a layer at a time while it computes.

Adapters stay whole on every rank: they are small, and files of them are then written by rank 0 as they are.
Embeddings and LM head stay whole as well, because the loss reads the head's weight outside of any forward
pass (`losses.sft`). Where all weights are trained, the layers' weights, gradients and moments are sharded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from scaler_wizard.errors import IncompatibleModelError
from scaler_wizard.training.distributed import Group
from scaler_wizard.training.forward import base_of
from scaler_wizard.training.state import TrainState, load_state, save_state


def shard(model: Any, group: Group) -> Any:
    """Divide a loaded model's layers among the ranks, in place; before its `TrainState` is made.

    Every forward pass afterwards, evaluations included, must be made by all ranks together.

    Raises:
        IncompatibleModelError: a model in 4 bit, or one without a list of decoder layers.
    """
    base = base_of(model)
    decoder = base.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None or getattr(base, "is_quantized", False):
        raise IncompatibleModelError(
            f"{type(base).__name__} "
            + ("without decoder.layers" if layers is None else "with 4-bit weights"),
            "a decoder of plain 16- or 32-bit layers",
            "train it whole on every process (--parallel replicated)",
        )
    whole = {*base.get_input_embeddings().parameters(), *base.get_output_embeddings().parameters()}
    if base is not model:
        whole |= {item for item in model.parameters() if item.requires_grad}
    mesh = init_device_mesh(group.device.type, (group.world,))
    for module in (*layers, decoder):
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        assert isinstance(sharded, FSDPModule)
        # The step divides by its targets; FSDP2 would divide by the number of ranks once more. Plain sums,
        # because gloo knows no scaled ones.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    return model


def save_shared_state(group: Group, state: TrainState, directory: Path) -> None:
    """`save_state` of the whole state, by rank 0; every rank calls it.

    Raises:
        ProcessGroupError: a rank did not come.
    """
    whole = _gathered(state, keep=group.rank == 0)
    if whole is not None:
        save_state(whole, directory)
    group.barrier("saving the training state")


def load_shared_state(group: Group, state: TrainState, directory: Path) -> None:
    """`load_state` on every rank, each keeping its own part.

    Raises:
        CheckpointError: as `load_state`.
    """
    whole = _gathered(state, keep=True)
    assert whole is not None
    load_state(whole, directory)
    with torch.no_grad():
        for name, master in state.masters.items():
            source = whole.masters[name]
            master.copy_(_as_part_of(master, source))
            if state.parameters[name] is not master:
                state.parameters[name].copy_(master)
            moments = whole.optimizer.state.get(source, {})
            state.optimizer.state[master] = {
                key: _as_part_of(master, value) if value.shape == source.shape else value
                for key, value in moments.items()
            }
            if not moments:
                state.optimizer.state.pop(master)
    state.step = whole.step
    state.clear_gradients()
    group.barrier("loading the training state")


def whole_weights(state: TrainState) -> dict[str, Tensor]:
    """Trained parameters by name, gathered where they are sharded; every rank calls it."""
    return {name: _whole(item).detach() for name, item in state.parameters.items()}


def _gathered(state: TrainState, *, keep: bool) -> TrainState | None:
    """A state of whole tensors with the same content; None on a rank that only takes part."""
    weights = {name: torch.nn.Parameter(_whole(item).detach()) for name, item in state.parameters.items()}
    masters = {name: _whole(item).detach() for name, item in state.masters.items()}
    moments = {
        name: {key: _whole(value).detach() for key, value in state.optimizer.state.get(item, {}).items()}
        for name, item in state.masters.items()
    }
    if not keep:
        return None
    group = state.optimizer.param_groups[0]
    whole = TrainState(
        weights.items(), betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"]
    )
    with torch.no_grad():
        for name, master in whole.masters.items():
            master.copy_(masters[name])
            if moments[name]:
                whole.optimizer.state[master] = moments[name]
    whole.step = state.step
    return whole


def _whole(item: Tensor) -> Tensor:
    """A copy-free tensor as it is, a sharded one gathered."""
    return item.full_tensor() if isinstance(item, DTensor) else item


def _as_part_of(like: Tensor, value: Tensor) -> Tensor:
    """`value` divided as `like` is; each rank already holds all of it, so nothing is sent."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
