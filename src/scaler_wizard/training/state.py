"""The state of a training between two steps: trained weights, AdamW moments, the step, random generators.

Saved as safetensors and JSON, never pickle. Knows nothing of checkpoints, phases or where they are kept:
two files that somebody else writes and commits.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from scaler_wizard.errors import CheckpointError
from scaler_wizard.models.tensor_files import Files, TensorFile, write_files

TENSORS_FILE = "training_state.safetensors"
FACTS_FILE = "training_state.json"
FORMAT = 1
MAX_FACTS_BYTES = 1 << 20


class TrainState:
    """AdamW over fp32 masters of the trainable parameters, and the number of steps done.

    A parameter stored in fp32 is its own master; one in lower precision gets an fp32 copy that is rounded
    back after every step. `train` advances the object in place; between two steps it can be saved.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.nn.Parameter]],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.parameters = {name: item for name, item in parameters if item.requires_grad}
        assert self.parameters, "nothing to train: no parameter requires a gradient"
        self.masters = {
            name: item if item.dtype == torch.float32 else item.detach().float().requires_grad_()
            for name, item in self.parameters.items()
        }
        self.step = 0
        # fused: one pass over the moments, on CPU as on CUDA. Its kernel takes sharded or whole tensors, not
        # both at once.
        kinds = [
            [item for item in self.masters.values() if isinstance(item, DTensor) == sharded]
            for sharded in (False, True)
        ]
        self.optimizer = torch.optim.AdamW(
            [{"params": items} for items in kinds if items],
            lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True,
        )  # fmt: skip

    @property
    def n_parameters(self) -> int:
        """Trained numbers."""
        return sum(item.numel() for item in self.parameters.values())

    def gradient_norm(self) -> float:
        """L2 norm of all gradients together, in fp32 at least; not finite if any of them is not."""
        gradients = [item.grad for item in self.parameters.values() if item.grad is not None]
        if not gradients:
            return 0.0
        norms = torch.stack([gradient_norm(item) for item in gradients])
        return float(torch.linalg.vector_norm(norms))

    def apply(self, learning_rate: float, gradient_scale: float = 1.0) -> None:
        """One AdamW step (Loshchilov & Hutter 2019, algorithm 2) on gradients times `gradient_scale`."""
        for name, master in self.masters.items():
            gradient = self.parameters[name].grad
            if gradient is None:
                continue
            master.grad = gradient.to(master.dtype)
            if gradient_scale != 1.0:
                master.grad.mul_(gradient_scale)
        self._allocate_moments()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        with torch.no_grad():
            for name, master in self.masters.items():
                if self.parameters[name] is not master:
                    self.parameters[name].copy_(master)
        self.clear_gradients()
        self.step += 1

    def _allocate_moments(self) -> None:
        """AdamW's zeros, each parameter's at once: where memory runs out, none is left half made."""
        for master in self.masters.values():
            if master.grad is not None and not self.optimizer.state[master]:
                self.optimizer.state[master] = {
                    "step": torch.zeros((), dtype=torch.float32, device=master.device),
                    "exp_avg": torch.zeros_like(master, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(master, memory_format=torch.preserve_format),
                }

    def clear_gradients(self) -> None:
        """Forget all gradients."""
        for name, item in self.parameters.items():
            item.grad = None
            self.masters[name].grad = None


def gradient_norm(gradient: Tensor) -> Tensor:
    """L2 norm [] of one tensor, in fp32 at least."""
    precise = torch.promote_types(gradient.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=precise)
    return norm


def save_state(state: TrainState, directory: Path) -> None:
    """Write the state into an existing directory: `training_state.safetensors` and `.json`."""
    write_files(state_files(state), directory)


def state_files(state: TrainState) -> Files:
    """What `save_state` writes, the tensors still the training's own: capture them before the next step."""
    tensors: dict[str, Tensor] = {}
    for name, master in state.masters.items():
        tensors[f"master/{name}"] = master.detach()
        for key, value in state.optimizer.state.get(master, {}).items():
            tensors[f"{key}/{name}"] = value.detach()
    for name, value in _generators().items():
        tensors[f"rng/{name}"] = value
    python = random.getstate()
    facts = {
        "format": FORMAT,
        "step": state.step,
        "parameters": {name: list(item.shape) for name, item in state.parameters.items()},
        "python_rng": [python[0], list(python[1]), python[2]],
        "numpy_rng": _numpy_facts(),
    }
    return {TENSORS_FILE: TensorFile(tensors), FACTS_FILE: json.dumps(facts).encode() + b"\n"}


def load_state(state: TrainState, directory: Path) -> None:
    """Restore weights, moments, step and random generators into a state made for the same model.

    Raises:
        CheckpointError: missing, damaged, of another format, of other parameters, or holding a number that
            is not finite. Weights and moments are unchanged then.
    """
    facts = _read_facts(directory)
    tensors = _read_tensors(directory)
    shapes = {name: list(item.shape) for name, item in state.parameters.items()}
    if facts.get("parameters") != shapes:
        different = sorted(set(shapes) ^ set(facts.get("parameters") or {}))
        raise _damaged(
            directory, f"it was saved for other parameters ({', '.join(different[:3]) or 'other shapes'})"
        )
    step = facts.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise _damaged(directory, f"its step is {step!r}")
    moments = _checked_moments(directory, tensors, shapes, step)
    try:
        _restore_generators(facts, tensors)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise _damaged(directory, f"its random generators cannot be restored ({error})") from None
    with torch.no_grad():
        for name, master in state.masters.items():
            master.copy_(tensors[f"master/{name}"])
            if state.parameters[name] is not master:
                state.parameters[name].copy_(master)
            if moments[name]:
                on_device = {key: value.to(master.device) for key, value in moments[name].items()}
                state.optimizer.state[master] = on_device
            else:
                state.optimizer.state.pop(master, None)
    state.step = step
    state.clear_gradients()


def _checked_moments(
    directory: Path, tensors: dict[str, Tensor], shapes: dict[str, list[int]], step: int
) -> dict[str, dict[str, Tensor]]:
    """AdamW's entries by parameter, after every tensor was checked; a parameter never stepped has none."""
    moments: dict[str, dict[str, Tensor]] = {}
    for name, shape in shapes.items():
        entries = {"master": shape}
        if f"exp_avg/{name}" in tensors:
            entries |= {"exp_avg": shape, "exp_avg_sq": shape, "step": []}
        for key, expected in entries.items():
            value = tensors.get(f"{key}/{name}")
            if value is None or list(value.shape) != expected or value.dtype != torch.float32:
                raise _damaged(directory, f"{key} of {name} is missing or of another shape")
            if not math.isfinite(float(value.abs().sum(dtype=torch.float64))):
                raise _damaged(directory, f"{key} of {name} holds a number that is not finite")
        moments[name] = {key: tensors[f"{key}/{name}"] for key in entries if key != "master"}
    return moments


def _read_facts(directory: Path) -> dict[str, Any]:
    path = directory / FACTS_FILE
    try:
        with path.open("rb") as file:
            facts = json.loads(file.read(MAX_FACTS_BYTES * 64))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(directory, f"{FACTS_FILE} cannot be read ({error})") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise _damaged(directory, f"{FACTS_FILE} is not of format {FORMAT}")
    return facts


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    try:
        with safe_open(directory / TENSORS_FILE, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise _damaged(directory, f"{TENSORS_FILE} cannot be read ({error})") from None


def _damaged(directory: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the training state in {directory} cannot be used: {reason}",
        "the state of this training",
        "resume from an earlier checkpoint",
    )


def _generators() -> dict[str, Tensor]:
    """States of torch's generators: the CPU's and every CUDA device's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{index}": value for index, value in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _numpy_facts() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "kind": kind,
        "keys": np.asarray(keys).tolist(),
        "position": position,
        "has_gauss": has_gauss,
        "cached": cached,
    }


def _restore_generators(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    version, words, gauss = facts["python_rng"]
    numpy = facts["numpy_rng"]
    keys = np.array(numpy["keys"], dtype=np.uint32)
    np.random.set_state(
        (str(numpy["kind"]), keys, int(numpy["position"]), int(numpy["has_gauss"]), numpy["cached"])
    )
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(tensors["rng/cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"rng/cuda{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng/cuda{index}"], index)
