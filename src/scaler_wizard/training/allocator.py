"""Tells the C allocator what a training needs: freed memory kept for speed, or given back to save it.

Knows glibc only; elsewhere it does nothing and says so.
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# The most glibc accepts on 64 bit; larger blocks are always given back at once.
_LARGEST_KEPT = 32 << 20
_NEVER = -1
_GROW_BY = 64 << 20
# Blocks that leave no gap: each has pages of its own.
_OWN_PAGES_FROM = 1 << 20
_short_of_memory = False


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed instead of returning it to the kernel.

    False, and nothing is told, where there is no glibc and in a process that has run out of memory before.

    Returned pages must be zeroed and mapped again when the next micro-batch wants them. The resident size
    then stays at its peak, which it would reach again a moment later. Lasts as long as the process.
    """
    if _short_of_memory:
        return False
    return _tell((_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _GROW_BY))


def return_freed_memory() -> bool:
    """Tell glibc to give large freed blocks back at once; False where there is no glibc.

    For trainings that recompute activations to save memory: their few lasting tensors lie between many
    short-lived ones, and a heap would keep the gaps, more than is saved.
    """
    return _tell((_M_MMAP_THRESHOLD, _OWN_PAGES_FROM), (_M_TRIM_THRESHOLD, _OWN_PAGES_FROM), (_M_TOP_PAD, 0))


def memory_ran_out() -> None:
    """Give freed blocks back from now on, for as long as the process lasts.

    Where memory is short, a heap that grows by much at a time cannot grow at all, and what it keeps is
    missing.
    """
    global _short_of_memory
    _short_of_memory = True
    return_freed_memory()


def _tell(*settings: tuple[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return all(mallopt(name, value) == 1 for name, value in settings)
