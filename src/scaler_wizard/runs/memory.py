"""How much memory the contract lets this process use, read from the machine and enforced where it can be."""

from __future__ import annotations

import psutil
import torch

from scaler_wizard.safety.limits import (
    MEMORY_FRACTION,
    MemoryLimit,
    MemoryReading,
    cpu_memory_limit,
    gpu_fraction,
    read_cgroup,
)


def device_memory_limit(device: torch.device) -> MemoryLimit:
    """The limit for `device` ("cpu" or "cuda"), as the machine is now.

    On CUDA the allocator is bound to it, so that an allocation beyond it fails instead of succeeding. On a
    CPU the caller watches resident memory (see `safety/limits`).
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(gpu_fraction(total, free), device)
        return MemoryLimit(min(free, total), MEMORY_FRACTION)
    memory = psutil.virtual_memory()
    maximum, used = read_cgroup()
    rss = psutil.Process().memory_info().rss
    return cpu_memory_limit(MemoryReading(memory.total, memory.available, rss, maximum, used))
