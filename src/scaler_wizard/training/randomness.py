"""Every random draw of a step named by (seed, step): dropout needs no saved state to resume exactly."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def step_randomness(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Seed torch, numpy and python for one step, and give the generators back as they were.

    An evaluation between two steps, or none after a restart, therefore changes nothing.
    """
    number = int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=4).digest(), "big")
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(number)
            random.seed(number)
            np.random.seed(number)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
