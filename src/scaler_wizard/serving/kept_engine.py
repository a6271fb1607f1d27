"""An engine process that is started again when it dies under its work, a few times, and then given up.

What it was asked when it died is lost and told so; what is asked while it starts again is told to come back.
The rule is a pure function of the times of its deaths. Torch-free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

from scaler_wizard.errors import ScalerError, WorkerDiedError
from scaler_wizard.serving.engine_process import Answer, EngineProcess

MOST_RESTARTS: Final = 3
WITHIN_SEC: Final = 600.0
CLOSE_SEC: Final = 15.0


def may_restart(deaths: Sequence[float], now: float) -> bool:
    """Whether an engine that died at these times (seconds, the last one just now) is started again.

    What kills it may be what it is asked: one that dies a fourth time within ten minutes is not.
    """
    return sum(now - at < WITHIN_SEC for at in deaths) <= MOST_RESTARTS


class KeptEngine:
    """One engine process at a time. Use as a context manager; arguments as `EngineProcess` takes them.

    Args:
        rule: decides after each death, see `may_restart`.
        say: told, in words, when it died and when it is back.

    Raises:
        ScalerError: what the first one could not load.
    """

    def __init__(
        self, bundle: Path, *, base: str | None = None, device: str = "cpu", threads: int = 0,
        features: Path | None = None, rule: Callable[[Sequence[float], float], bool] = may_restart,
        say: Callable[[str], None] = lambda words: None,
    ) -> None:  # fmt: skip
        self._start = partial(
            EngineProcess, bundle, base=base, device=device, threads=threads, features=features
        )
        self._rule, self._say = rule, say
        self._engine: EngineProcess | None = self._start()
        self.labels = self._engine.labels
        """Labels of the experts."""
        self._closing = threading.Event()
        self._given_up: WorkerDiedError | None = None
        self._at_end: Callable[[], None] = lambda: None
        self._watcher = threading.Thread(target=self._watch, name="experts engine", daemon=True)
        self._watcher.start()

    def __enter__(self) -> KeptEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ready(self) -> bool:
        """Whether there is an engine to ask."""
        return self._engine is not None

    @property
    def pid(self) -> int | None:
        """Of the engine; None while there is none."""
        engine = self._engine
        return int(engine.about["pid"]) if engine is not None else None

    @property
    def given_up(self) -> WorkerDiedError | None:
        """Why it is not started again any more; None while it is."""
        return self._given_up

    def when_given_up(self, do: Callable[[], None]) -> None:
        """Call this, in another thread, once it is given up."""
        self._at_end = do

    def submit(
        self, prompt: str, *, image_b64: str | None = None, expert: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Future[Answer]:  # fmt: skip
        """See `EngineProcess.submit`.

        Raises:
            WorkerDiedError: there is no engine now.
        """
        engine = self._engine
        if engine is None:
            raise self._given_up or WorkerDiedError(
                "the engine process has ended", "", "it is being started again: ask again in some seconds"
            )
        return engine.submit(prompt, image_b64=image_b64, expert=expert, max_new_tokens=max_new_tokens)

    def close(self) -> None:
        """End it for good."""
        self._closing.set()
        engine = self._engine
        if engine is not None:
            engine.close()
        self._watcher.join(CLOSE_SEC)

    def _watch(self) -> None:
        deaths: list[float] = []
        while (died := self._death()) is not None:
            deaths.append(time.monotonic())
            if not self._rule(deaths, deaths[-1]):
                self._given_up = WorkerDiedError(
                    f"the engine process was lost {len(deaths)} times; the last time: {died.found}", "",
                    "look at what it was asked and at the machine's memory, then start it again",
                )  # fmt: skip
                self._at_end()
                return
            self._say(f"{died.found}; it is started again")

    def _death(self) -> ScalerError | None:
        """Why the engine ended, or could not be started; None when it was closed."""
        if self._engine is None:
            try:
                started = self._start()
            except ScalerError as error:
                return None if self._closing.is_set() else error
            self._engine = started
            if self._closing.is_set():  # `close` may have come too early to see it
                started.close()
                return None
            self._say("the engine is ready again")
        died = self._engine.ended()
        if self._closing.is_set():
            return None
        gone, self._engine = self._engine, None
        gone.close()
        return died
