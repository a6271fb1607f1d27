"""The host of a workspace: one process that owns the database and answers on a Unix socket.

`Host` runs its event loop in a background thread, so that `scaler run` can show progress and ask at
gates in the foreground through the same socket that every other command uses. What requests mean is
`service.Service`'s business; here are only bytes: one JSON object a line in, one out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaler_wizard.errors import RunError, ScalerError, SpecError
from scaler_wizard.jobs.service import Service
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store.lock import HostLock
from scaler_wizard.store.workspace import Workspace

MAX_LINE = 1 << 20
log = logging.getLogger(__name__)


class Host:
    """Serves one `Service` on the workspace's socket until closed."""

    def __init__(self, service: Service, address: Path) -> None:
        self.service = service
        self.address = address
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="scaler-host", daemon=True)
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Listen; returns once connections are accepted."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop listening and wait for the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self.address.unlink(missing_ok=True)

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """The same operation as over the socket, from this process, on the host's own thread."""

        async def run() -> dict[str, Any]:
            return self.service.handle({"op": op, **fields})

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            # We hold the workspace's lock, so a socket file that is already there is a dead host's.
            self.address.unlink(missing_ok=True)
            mask = os.umask(0o177)
            try:
                server = self._loop.run_until_complete(
                    asyncio.start_unix_server(self._connection, str(self.address), limit=MAX_LINE)
                )
            finally:
                os.umask(mask)
        except OSError as error:
            self._failure = error
            self._ready.set()
            return
        supervisor = self._loop.create_task(self._supervise())
        self._ready.set()
        self._loop.run_forever()
        supervisor.cancel()
        self._loop.run_until_complete(_end(server))
        self._loop.close()

    async def _supervise(self) -> None:
        while True:
            try:
                self.service.reap()
            except Exception:
                # Whatever went wrong with one worker, the host goes on looking after the others.
                log.exception("looking after workers failed")
            await asyncio.sleep(0.1)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError):
            # A client that hangs up, or sends a line over the limit, harms only its own connection.
            pass
        finally:
            writer.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _refused(SpecError("a request that is not JSON", "one JSON object a line"))
        if not isinstance(request, dict):
            return _refused(SpecError("a request that is not an object", "one JSON object a line"))
        try:
            return self.service.handle(request)
        except ScalerError as error:
            return _refused(error)
        except Exception as error:
            log.exception("request %s failed", request.get("op"))
            return _refused(RunError(f"the host failed: {error!r}"))


def _refused(error: ScalerError) -> dict[str, Any]:
    """An error in an envelope of its own: a run's row has a field "error" too."""
    return {"refused": error.as_dict()}


@contextmanager
def hosting(workspace: Workspace, config: ContinualConfig | None = None) -> Iterator[Host]:
    """Own the workspace and serve its socket for as long as the block lasts."""
    with HostLock.acquire(workspace.lock), Service(workspace, config) as service:
        host = Host(service, workspace.socket)
        host.start()
        try:
            yield host
        finally:
            host.close()


async def _end(server: asyncio.Server) -> None:
    """Accept nobody any more, cancel every other task, and let the loop close the connections they held."""
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening.fileno())
    # A connection accepted just now can be closed only once it has begun, four turns of the loop later; a
    # server closed before that breaks it off halfway, with its socket open (asyncio of Python 3.11).
    await _turns(8)
    server.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await _turns(8)


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)
