"""The number format: chosen once, with a reason."""

from __future__ import annotations

import mmap

import pytest
import torch

from scaler_wizard.training.memory import memory_bytes, peak_memory_bytes
from scaler_wizard.training.precision import bfloat16_feature, choose_precision, cpu_bfloat16_feature


@pytest.mark.parametrize(
    ("requested", "n_parameters", "feature", "on_cpu", "dtype", "words"),
    [
        ("auto", 1_000_000, "avx512_bf16", True, torch.float32, "1.0M parameters"),
        ("auto", 1_000_000_000, "avx512_bf16", True, torch.bfloat16, "avx512_bf16"),
        ("auto", 1_000_000_000, None, True, torch.float32, "does not compute in bfloat16"),
        ("auto", 1_000_000, "compute capability 8.0", False, torch.bfloat16, "8.0"),
        ("float32", 1_000_000_000, "amx_bf16", True, torch.float32, "as the job asks"),
        ("bfloat16", 1_000, None, True, torch.bfloat16, "as the job asks"),
    ],
)
def test_choice(
    requested: str, n_parameters: int, feature: str | None, on_cpu: bool, dtype: torch.dtype, words: str
) -> None:
    choice = choose_precision(requested, n_parameters, bfloat16_feature=feature, on_cpu=on_cpu)  # type: ignore[arg-type]
    assert choice.dtype == dtype
    assert words in choice.reason


def test_cpu_flags() -> None:
    assert cpu_bfloat16_feature("flags\t: fpu avx512f avx512_bf16 amx_bf16") == "amx_bf16"
    assert cpu_bfloat16_feature("Features : fp asimd bf16") == "bf16"
    assert cpu_bfloat16_feature("flags : fpu avx512f") is None
    assert cpu_bfloat16_feature("") is None
    assert bfloat16_feature(torch.device("cpu")) in (None, "amx_bf16", "avx512_bf16", "bf16")


def test_memory_of_this_process() -> None:
    device = torch.device("cpu")
    before = memory_bytes(device)
    # A fresh mapping: memory that the allocator kept from earlier tests is resident already.
    with mmap.mmap(-1, 64 << 20) as block:
        block.write(b"\1" * len(block))
        assert memory_bytes(device) - before > 50 << 20
        assert peak_memory_bytes(device) >= memory_bytes(device) - (1 << 20)
