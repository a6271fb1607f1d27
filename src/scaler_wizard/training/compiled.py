"""torch.compile where shapes allow it: the parts of a decoder layer that see no segment bounds.

Attention takes the lengths of this micro-batch as Python numbers, and compiling it would start over at
every step. Norms and MLPs see [1, T, H] alone and are compiled once for any T; they hold most of the
elementwise work. For a GPU: on a CPU the compiler runs for longer than most trainings would win back.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from scaler_wizard.training.forward import base_of


def compile_blocks(model: Any, *, backend: str = "inductor") -> int:
    """Compile norms and MLPs of every decoder layer in place; returns how many modules.

    The first step of a training then takes longer. Call it after adapters are attached, and train with
    `TrainSettings(fused=False)`: what `fast_path` has fused by hand leaves the compiler nothing to do.
    """
    modules: list[nn.Module] = [
        module
        for layer in base_of(model).get_decoder().layers
        for name, module in layer.named_children()
        if name == "mlp" or "norm" in name
    ]
    for module in modules:
        module.compile(dynamic=True, backend=backend)
    return len(modules)
