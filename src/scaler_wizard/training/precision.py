"""Which number format the weights compute in, chosen once from hardware and size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

# LoRA steps (rank 8, all linear layers, 1,024 packed tokens) of Llama shapes on one thread of an AMD EPYC
# with AVX512-BF16, tokens a second in fp32 -> bf16: 1.0M 4313 -> 3973, 6.2M 1465 -> 1308, 23M 772 -> 740,
# 60M 203 -> 310, 110M 118 -> 191. Below the crossing fp32 is faster and more exact.
SMALL_MODEL_PARAMETERS = 30_000_000
_CPU_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")


@dataclass(frozen=True, slots=True)
class Precision:
    """A number format and why."""

    dtype: torch.dtype
    reason: str


def cpu_bfloat16_feature(cpuinfo: str) -> str | None:
    """What multiplies in bfloat16, by the text of /proc/cpuinfo (bf16 is Arm's name for it), or None."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = set(value.split())
            return next((flag for flag in _CPU_FLAGS if flag in flags), None)
    return None


def choose_precision(
    requested: Literal["auto", "float32", "bfloat16"],
    n_parameters: int,
    *,
    bfloat16_feature: str | None,
    on_cpu: bool,
) -> Precision:
    """bfloat16 where the hardware computes in it and the model is large enough to gain by it.

    Trained weights keep fp32 masters either way (`state.py`).

    Args:
        bfloat16_feature: what computes in bfloat16 here (`bfloat16_feature`), None when nothing does.
    """
    if requested != "auto":
        return Precision(getattr(torch, requested), f"{requested}, as the job asks")
    if bfloat16_feature is None:
        return Precision(torch.float32, "float32: this hardware does not compute in bfloat16")
    if on_cpu and n_parameters < SMALL_MODEL_PARAMETERS:
        return Precision(
            torch.float32,
            f"float32: with {n_parameters / 1e6:.1f}M parameters a CPU is faster in it than in bfloat16",
        )
    return Precision(torch.bfloat16, f"bfloat16: the hardware computes in it ({bfloat16_feature})")


def bfloat16_feature(device: torch.device) -> str | None:
    """What computes in bfloat16 on `device`, or None."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor}" if major >= 8 else None
    try:
        return cpu_bfloat16_feature(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
