"""Telling a failed allocation from every other error, and giving back what a failed attempt held."""

from __future__ import annotations

import ctypes
import errno
import gc
import sys

import torch

from scaler_wizard.training.allocator import memory_ran_out

# torch raises plain RuntimeErrors for these: its CPU allocator, C++'s operator new, cuBLAS, and MPS.
_WORDS = (
    "can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "alloc_failed",
    "cannot allocate memory",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def release_memory() -> None:
    """Give freed memory back to the device and the system, now and from now on.

    Call it outside the `except` block: the error's traceback holds every tensor of the failed attempt.
    """
    memory_ran_out()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        try:
            # glibc keeps freed blocks in its heap; the next attempt asks for blocks of other sizes.
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return  # another C library
