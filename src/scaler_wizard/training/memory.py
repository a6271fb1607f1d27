"""How much memory this process holds, on the device it trains on."""

from __future__ import annotations

import psutil
import torch


def memory_bytes(device: torch.device) -> int:
    """Bytes allocated by torch on a CUDA device, else the resident set size of this process."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes(device: torch.device) -> int:
    """The most `memory_bytes` has been: since the process began, or on CUDA since `reset_peak`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource  # not on Windows, where only CUDA training is measured

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak(device: torch.device) -> None:
    """Start a new peak; the kernel keeps no such mark for a process, so this is for CUDA only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
