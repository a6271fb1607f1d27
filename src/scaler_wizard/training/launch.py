"""What torchrun tells a process in its environment, and where processes may meet. Torch-free."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from scaler_wizard.errors import ProcessGroupError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Launch:
    """What torchrun says in the environment."""

    rank: int
    world: int
    local_rank: int
    address: str


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """torchrun's variables; None where there are none: one process.

    Raises:
        ProcessGroupError: some are missing or make no sense.
    """
    if "WORLD_SIZE" not in environment:
        return None
    missing = [name for name in _VARIABLES if name not in environment]
    try:
        rank, world, local = (int(environment.get(name, "-1")) for name in _VARIABLES[:3])
    except ValueError:
        rank = world = local = -1
    if missing or not 0 <= rank < world or local < 0:
        values = ", ".join(f"{name}={environment.get(name, '(missing)')}" for name in _VARIABLES[:3])
        raise ProcessGroupError(
            f"the environment names several processes, but {values}"[:300],
            "the variables that torchrun sets",
            "start with: torchrun --standalone --nproc-per-node 2 -m ...",
        )
    return Launch(rank, world, local, environment["MASTER_ADDR"])


def stay_local(address: str) -> None:
    """Refuse a meeting point elsewhere, and make gloo and NCCL speak on the loopback interface alone.

    Raises:
        ProcessGroupError: the address is not this machine's.
    """
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(address, None)}
    except OSError as error:
        found = {f"unknown: {error}"}
    if not all(_is_loopback(item) for item in found):
        raise ProcessGroupError(
            f"the processes are to meet at {address}, which is not this machine's loopback address",
            "127.0.0.1 or localhost: gradients and weights travel unencrypted",
            "use torchrun --standalone, or allow the network where you trust every machine on it",
        )
    for _, interface in socket.if_nameindex():
        if interface in ("lo", "lo0"):
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
