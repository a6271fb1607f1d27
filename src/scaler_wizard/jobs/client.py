"""How any command reaches the one job system: over the host's socket, or as the host for a moment.

With a host alive, requests go through its socket. Without one, the command takes the workspace's lock
itself, does its one operation on the database, and lets go.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from scaler_wizard import errors
from scaler_wizard.errors import RunError, ScalerError, WorkspaceBusyError
from scaler_wizard.jobs.service import Service
from scaler_wizard.store.lock import HostLock
from scaler_wizard.store.workspace import Workspace

TIMEOUT_SEC = 30.0


class Client:
    """Operations on one workspace; `hosted` says whether a living host answered."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._socket = _connect(workspace.socket)
        self._file = self._socket.makefile("rwb") if self._socket else None

    @property
    def hosted(self) -> bool:
        """Whether a host process is serving this workspace."""
        return self._socket is not None

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """One operation; the answer's fields.

        Raises:
            ScalerError: whatever the operation refused, as its own class.
        """
        request = {"op": op, **fields}
        if self._file is None:
            return self._alone(request)
        try:
            self._file.write(json.dumps(request).encode() + b"\n")
            self._file.flush()
            line = self._file.readline()
        except OSError as error:
            raise RunError(f"the host stopped answering ({error})", "", "try again") from None
        if not line:
            raise RunError("the host hung up", "an answer", "try again; `scaler resume` continues the run")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise _rebuild(answer["refused"])
        return answer

    def _alone(self, request: dict[str, Any]) -> dict[str, Any]:
        with HostLock.acquire(self.workspace.lock), Service(self.workspace) as service:
            return service.handle(request)

    def close(self) -> None:
        """Hang up."""
        if self._file is not None and self._socket is not None:
            self._file.close()
            self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _connect(address: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT_SEC)
    try:
        connection.connect(str(address))
    except OSError:
        connection.close()
        return None
    return connection


def _rebuild(answer: dict[str, Any]) -> ScalerError:
    """An error that crossed the socket, as its own class again (so that exit codes stay)."""
    kind = getattr(errors, str(answer["error"]), RunError)
    found, expected, todo = (str(answer.get(key, "")) for key in ("found", "expected", "todo"))
    if kind is errors.ContractNotAcceptedError:
        return errors.ContractNotAcceptedError(str(answer.get("field", "")), found, expected, todo)
    if not (isinstance(kind, type) and issubclass(kind, ScalerError)) or kind is errors.BreakerTrippedError:
        kind = RunError
    return kind(found, expected, todo)


__all__ = ["Client", "WorkspaceBusyError"]
