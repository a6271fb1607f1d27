"""The worker's line to its host: one JSON request, one JSON answer, over a Unix socket.

The host may die and come back while the worker goes on. A request that finds nobody therefore
answers None instead of failing, and the next one connects again; what must not be lost is in the
run directory (events, checkpoints, exit status), never only in a message.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from scaler_wizard.errors import WrongStateError

MAX_MESSAGE = 1 << 20
RECONNECT_SEC = 1.0


class HostLink:
    """Requests from one attempt of one run. `token` fences out an older attempt of the same run."""

    def __init__(self, address: Path | None, run: str, token: int) -> None:
        self.address = address
        self.run = run
        self.token = token
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._retry_at = 0.0

    def request(self, op: str, **fields: Any) -> dict[str, Any] | None:
        """Send {op, run, token, pid, ...} and return the host's answer, or None when nobody answers.

        Raises:
            WrongStateError: the host refused this attempt (a newer one has taken over).
        """
        message = {"op": op, "run": self.run, "token": self.token, "pid": os.getpid(), **fields}
        try:
            if self._socket is None:
                self._connect()
            if self._socket is None:
                return None
            self._socket.sendall(json.dumps(message).encode() + b"\n")
            answer = self._read_line()
        except (OSError, ValueError):
            self.close()
            return None
        if answer.get("fenced"):
            raise WrongStateError(
                f"attempt {self.token} of {self.run} is no longer the current one",
                "one worker for a run", "nothing: the newer attempt goes on",
            )  # fmt: skip
        return answer

    def close(self) -> None:
        """Hang up; the next request connects again."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._buffer = b""

    def _connect(self) -> None:
        now = time.monotonic()
        if self.address is None or now < self._retry_at:
            return
        self._retry_at = now + RECONNECT_SEC
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh.settimeout(30.0)
        try:
            fresh.connect(str(self.address))
        except OSError:
            fresh.close()
            return
        self._socket = fresh

    def _read_line(self) -> dict[str, Any]:
        assert self._socket is not None
        while b"\n" not in self._buffer:
            chunk = self._socket.recv(65536)
            if not chunk or len(self._buffer) > MAX_MESSAGE:
                raise OSError("the host hung up")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value
