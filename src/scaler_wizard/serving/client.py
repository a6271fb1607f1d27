"""The Python API of experts in service: `ExpertsClient(folder).ask(prompt, image=None, expert=None)`."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from types import TracebackType

from scaler_wizard.errors import DataFileMissingError, WorkerDiedError
from scaler_wizard.serving.engine_process import Answer, EngineProcess

ANSWER_SEC = 600.0
MAX_IMAGE_BYTES = 20_000_000


class ExpertsClient:
    """Experts behind their router, in a process that lives as long as this object. Use as a context manager.

    Args:
        folder: a bundle: models/NAME/vNNN/bundle of a workspace, or an exported one.
        base: another place of the same base model; its weights must be the same.
        features: as `EngineProcess` takes it.
    """

    def __init__(
        self, folder: Path, *, base: str | None = None, device: str = "cpu", threads: int = 0,
        features: Path | None = None,
    ) -> None:  # fmt: skip
        self._process = EngineProcess(folder, base=base, device=device, threads=threads, features=features)

    def __enter__(self) -> ExpertsClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the experts."""
        return self._process.labels

    @property
    def process(self) -> EngineProcess:
        """The engine behind it, for who serves it further."""
        return self._process

    def ask(
        self, prompt: str, image: bytes | Path | None = None, expert: str | None = None,
        *, max_new_tokens: int | None = None, timeout: float = ANSWER_SEC,
    ) -> Answer:  # fmt: skip
        """One answer.

        Args:
            image: a picture file, or its bytes.
            expert: a label that skips the router; "base" asks the base alone.
            timeout: seconds to wait.

        Raises:
            RowError, ImageError, UnknownExpertError: what is wrong with the question.
            WorkerDiedError: the engine has ended, or took longer than `timeout`.
        """
        picture = encoded(image)
        return _awaited(
            self._process.submit(prompt, image_b64=picture, expert=expert, max_new_tokens=max_new_tokens),
            timeout,
        )

    def ask_all(self, prompts: Iterable[str], timeout: float = ANSWER_SEC) -> list[Answer]:
        """Answers in the order of the prompts; the engine works on all of them together. Raises as `ask`."""
        futures = [self._process.submit(prompt) for prompt in prompts]
        return [_awaited(future, timeout) for future in futures]

    def close(self) -> None:
        """End the engine."""
        self._process.close()


def _awaited(future: Future[Answer], timeout: float) -> Answer:
    try:
        return future.result(timeout)
    except FutureTimeoutError:
        raise WorkerDiedError(f"no answer after {timeout:.0f} s", "", "ask for a shorter answer") from None


def encoded(image: bytes | Path | None) -> str | None:
    """Base64 of a picture; what it is, the engine says.

    Raises:
        DataFileMissingError: no such file, or it is not one.
    """
    if image is None:
        return None
    if isinstance(image, Path):
        if not image.is_file():
            raise DataFileMissingError(f"no picture at {image}", "a picture file", "check the path")
        with image.open("rb") as file:
            # One byte more than is allowed: the engine then refuses it by its size.
            image = file.read(MAX_IMAGE_BYTES + 1)
    return base64.b64encode(image).decode("ascii")
