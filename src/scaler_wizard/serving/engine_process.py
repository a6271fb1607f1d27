"""The engine in a process of its own: started by command, asked by JSON lines, ended with its input.

Torch-free. Many threads may ask at once; the process answers what waits together. Its death is an error of
every question that it has not answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from scaler_wizard import errors
from scaler_wizard.errors import ModelError, ScalerError, WorkerDiedError
from scaler_wizard.store.workspace import DATABASE_VARIABLE

MODULE: Final = "scaler_wizard.inference.experts.process"
START_SEC: Final = 600.0
END_SEC: Final = 10.0
LOG_BYTES: Final = 4000


@dataclass(frozen=True)
class Answer:
    """What came back for one question."""

    answer: str
    expert: str
    """Label of the expert that answered, or "base"."""
    confidence: float | None
    """The router's probability of its first choice; None where an expert was named."""
    abstained: bool
    """The router was unsure: the fallback answered."""
    finish: str = "stop"
    """"stop", or "length" where the answer was cut off."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """Work done for it: prefills, router forwards, vision encodes..."""


class EngineProcess:
    """One engine process. Use as a context manager.

    Args:
        bundle: folder with loras.json.
        base: another place of the same base model.
        threads: of torch; its own choice when 0.
        features: folder of what vision towers made of pictures before (`Workspace.vision_features`).

    Raises:
        ScalerError: what the process could not load, in its own words.
        WorkerDiedError: it ended before it was ready.
    """

    def __init__(
        self, bundle: Path, *, base: str | None = None, device: str = "cpu", threads: int = 0,
        features: Path | None = None, start_sec: float = START_SEC,
    ) -> None:  # fmt: skip
        command = [sys.executable, "-m", MODULE, str(bundle), "--device", device, "--threads", str(threads)]
        if base is not None:
            command += ["--base", base]
        if features is not None:
            command += ["--features", str(features)]
        self._log = tempfile.TemporaryFile(prefix="scaler-experts-")  # noqa: SIM115 closed by close()
        # Threads that wait must not spin on a machine that others use.
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "HF_HUB_OFFLINE": "1"}
        environment.pop(
            DATABASE_VARIABLE, None
        )  # only the host opens the database; its URL may hold a password
        # A group of its own: Ctrl-C is for us, who let it finish what it was asked.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment,
            process_group=0,
        )  # fmt: skip
        self._lock = threading.Lock()
        # Apart from the table's: a full pipe must not keep the reader from the answers that would empty it.
        self._writing = threading.Lock()
        self._waiting: dict[int, Future[Answer]] = {}
        self._next = 0
        self._first: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="experts answers", daemon=True)
        self._reader.start()
        try:
            self.about = self._started(start_sec)
        except BaseException:
            self._process.kill()  # it has nothing to finish
            self.close()
            raise

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the experts."""
        return tuple(str(label) for label in self.about["labels"])

    @property
    def ready(self) -> bool:
        """Whether it lives."""
        return self._process.poll() is None

    def submit(
        self, prompt: str, *, image_b64: str | None = None, expert: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Future[Answer]:  # fmt: skip
        """Ask without waiting; the future raises what the process refused."""
        request: dict[str, Any] = {"prompt": prompt}
        named = {"image_b64": image_b64, "expert": expert, "max_new_tokens": max_new_tokens}
        request |= {key: value for key, value in named.items() if value is not None}
        future: Future[Answer] = Future()
        future.set_running_or_notify_cancel()  # who does not wait any more must not break who settles it
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._waiting[number] = future
        line = json.dumps({"id": number, **request}).encode() + b"\n"
        try:
            assert self._process.stdin is not None
            with self._writing:
                self._process.stdin.write(line)
                self._process.stdin.flush()
        except (OSError, ValueError):
            with self._lock:
                unsettled = self._waiting.pop(number, None) is not None
            if unsettled:  # else the reader has said so already
                future.set_exception(self._died())
        return future

    def ended(self) -> WorkerDiedError:
        """Wait until the process has ended, and say why."""
        self._reader.join()
        return self._died()

    def close(self) -> None:
        """End the process: it answers what it has, then it goes; after ten seconds it is killed."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it is gone already, with something still in the pipe
                self._process.stdin.close()
        try:
            self._process.wait(END_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(END_SEC)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _started(self, start_sec: float) -> dict[str, Any]:
        try:
            first = self._first.get(timeout=start_sec)
        except queue.Empty:
            raise WorkerDiedError(
                f"the engine process was not ready after {start_sec:.0f} s", "", "look at the machine's load"
            ) from None
        if "ready" in first:
            return dict(first["ready"])
        if "error" in first:
            raise understood(first["error"])
        raise self._died()

    def _read(self) -> None:
        assert self._process.stdout is not None
        heard = False
        for line in self._process.stdout:
            value = _parsed(line)
            if value is None:
                continue
            if not heard:
                heard = True
                self._first.put(value)
                continue
            self._settle(value)
        if not heard:
            self._first.put({})
        with self._lock:
            left, self._waiting = list(self._waiting.values()), {}
        for future in left:
            future.set_exception(self._died())

    def _settle(self, value: dict[str, Any]) -> None:
        number = value.get("id")
        with self._lock:
            future = self._waiting.pop(number, None) if isinstance(number, int) else None
        if future is None:
            return
        if "error" in value:
            future.set_exception(understood(value["error"]))
            return
        future.set_result(
            Answer(
                str(value["answer"]), str(value["expert"]), value["confidence"], bool(value["abstained"]),
                str(value["finish"]), dict(value["counters"]),
            )
        )  # fmt: skip

    def _died(self) -> WorkerDiedError:
        try:
            self._log.seek(0, os.SEEK_END)
            self._log.seek(max(0, self._log.tell() - LOG_BYTES))
            last = self._log.read().decode("utf-8", "replace").strip().splitlines()
        except ValueError:  # another thread has closed it
            return WorkerDiedError("the engine process was ended", "", "start another one")
        why = f": {last[-1][:300]}" if last else ""
        return WorkerDiedError(f"the engine process has ended{why}", "", "start it again")


def understood(value: Any) -> ScalerError:
    """The error that another process met, as it was there."""
    if not isinstance(value, dict):
        return ModelError("the engine process refused without a reason")
    kind = getattr(errors, str(value.get("error")), ModelError)
    texts = [str(value.get(key) or "") for key in ("found", "expected", "todo")]
    if not (isinstance(kind, type) and issubclass(kind, ScalerError)):
        kind = ModelError
    try:
        return kind(*texts)
    except TypeError:  # a class with other fields than the three texts
        return ModelError(*texts)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
